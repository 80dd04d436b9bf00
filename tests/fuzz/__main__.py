"""Fuzzes every parser with atheris, one process each: ``python -m tests.fuzz [NAME…]``.

``FUZZ_SECONDS`` says how long each (60). Inputs found and crashes are kept in
``.cache/fuzz/NAME``; a crash is told with the file that repeats it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.parsers import parsers

ROOT = Path(__file__).parents[2]
WORKERS = 2
MEGABYTES = 1024


def fuzz(name: str, seconds: int) -> tuple[str, bool, str]:
    """Fuzz one parser; return its name, whether nothing was found, and the last words."""
    folder = ROOT / ".cache" / "fuzz" / name
    for part in ("found", "seeds"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(parsers()[name].seeds()):
        (folder / "seeds" / str(number)).write_bytes(seed)
    command = [sys.executable, "-m", "tests.fuzz.harness", name, f"-max_total_time={seconds}", "-timeout=10"]
    command += [f"-rss_limit_mb={MEGABYTES}", "-max_len=8192", f"-artifact_prefix={folder}/", "-verbosity=0"]
    command += [str(folder / "found"), str(folder / "seeds")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return name, done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def main(wanted: Sequence[str]) -> int:
    """Fuzz the parsers ``wanted``, or all; return 1 if anything was found."""
    seconds = int(os.environ.get("FUZZ_SECONDS", "60"))
    names = [name for name in parsers() if not wanted or name in wanted]
    with ThreadPoolExecutor(WORKERS) as pool:
        verdicts = list(pool.map(lambda name: fuzz(name, seconds), names))
    for name, sound, words in verdicts:
        sys.stdout.write(f"{name:<20} {'nothing found' if sound else 'FOUND'}\n")
        if not sound:
            sys.stdout.write(words + "\n")
    return 0 if all(sound for _, sound, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
