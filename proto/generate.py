"""Regenerates the stubs of ``hansa.v1`` beside their protos.

The stubs are committed: what a hospital reviews is what runs, and the floor of
the protobuf runtime moves in a reviewed change only. ``--check`` fails when a
committed stub is not what the protos and the pinned generators give.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PACKAGE = Path("hansa/v1")
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(target: Path) -> None:
    """Write the stubs of every proto below ``target``.

    Raises:
        RuntimeError: a proto does not compile; protoc has said why on stderr.
    """
    bundled = resources.files("grpc_tools") / "_proto"
    # Beside this interpreter: whoever calls need not have activated anything.
    programs = Path(sys.executable).parent
    protos = sorted(str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).glob("*.proto"))
    status = protoc.main(
        [
            "protoc",
            f"-I{ROOT}",
            f"-I{bundled}",
            f"--plugin=protoc-gen-mypy={programs / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={programs / 'protoc-gen-mypy_grpc'}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out={target}",
            f"--mypy_grpc_out={target}",
            *protos,
        ]
    )
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")


def stubs(folder: Path) -> dict[str, Path]:
    """Return the generated files of ``folder`` by name."""
    return {path.name: path for pattern in GENERATED for path in folder.glob(pattern)}


def stale() -> list[str]:
    """Return the names of committed stubs that differ from fresh ones."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh, committed = stubs(Path(scratch) / PACKAGE), stubs(ROOT / PACKAGE)
        return sorted(
            name
            for name in fresh.keys() | committed.keys()
            if name not in fresh
            or name not in committed
            or not filecmp.cmp(fresh[name], committed[name], shallow=False)
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Regenerates the stubs of hansa.v1.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a stub is stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    names = stale()
    for name in names:
        sys.stderr.write(f"stale: {PACKAGE / name}; run python proto/generate.py\n")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
