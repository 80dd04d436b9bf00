"""One parser under atheris: ``python -m tests.fuzz.harness NAME [libFuzzer options] FOLDER…``."""

from __future__ import annotations

import sys

import atheris

# Instrumented as it is loaded, so that new branches are noticed.
with atheris.instrument_imports(include=["hansa", "coordinator"]):
    from tests.support.parsers import feed, parsers


def main() -> None:
    """Feed what atheris makes to the parser; anything but a refusal in words is a crash."""
    parser = parsers()[sys.argv.pop(1)]
    for seed in parser.seeds():
        feed(parser, seed)

    def one(data: bytes) -> None:
        feed(parser, data)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
