"""Counting every variant of a simulated cohort, against plink2 on the same file.

``python -m tests.bench.bench_counting [--variants 60000] [--people 2500]``
prints JSON: seconds (the median of the repeats) and ratios. What is compared:

- ``counting``: the counts alone, in a process that has numpy loaded;
- ``process``: the analysis' script as the sandbox starts it, from the start of
  Python to the summary on disk;
- ``plink2``: ``plink2 --freq counts``, the whole process, tables on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from node_agent.staging.records import BiallelicVariant
from node_agent.staging.snapshot_writer import SnapshotWriter
from tests.support.genotypes import ALLELE_FREQUENCY, counting_script, program

REGION: Final = "1:1-249250621"
_ENVIRONMENT: Final = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # as the Snakefile has it


def _variants(variants: int, people: int) -> Iterator[BiallelicVariant]:
    """Yield variants whose frequencies are those of a neutral population: density 1/f."""
    rng = np.random.default_rng(2500)
    frequencies = (1 / (2 * people)) ** (1 - rng.random(variants))
    for row, frequency in enumerate(frequencies):
        genotypes = rng.binomial(2, frequency, people).astype(np.int8)
        yield BiallelicVariant("1", 1000 + 20 * row, f"rs{row + 1}", "A", "C", genotypes)


def _simulate(folder: Path, variants: int, people: int) -> None:
    writer = SnapshotWriter(folder, [("female", "male")[number % 2] for number in range(people)])
    for variant in _variants(variants, people):
        writer.add(variant)
    writer.finish()


def _medians(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each, taken in turns, so that a busy machine slows all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:  # the first warms the page cache for everybody
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _plink2(folder: Path) -> None:
    command = [
        program("plink2"),
        "--pfile",
        str(folder / "genotypes"),
        "--freq",
        "counts",
        "--out",
        str(folder / "out"),
    ]
    subprocess.run(command, check=True, capture_output=True)


def _script(folder: Path, parameters: dict[str, str]) -> Callable[[], object]:
    given = folder / f"{len(parameters)}.json"
    given.write_text(json.dumps(parameters), encoding="utf-8")
    script = ALLELE_FREQUENCY / "scripts" / "count_alleles.py"
    paths = ["--data", str(folder), "--parameters", str(given), "--summary", str(folder / "summary.json")]
    command = [sys.executable, "-I", "-B", str(script), *paths]
    return lambda: subprocess.run(command, check=True, env=_ENVIRONMENT)


def _check_same(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_bytes())
    lines = (folder / "out.acount").read_text().splitlines()[1:]
    if summary["arrays"]["ac"]["values"] != [int(line.split("\t")[4]) for line in lines]:
        raise AssertionError("the two count differently")


def measure(folder: Path, variants: int, people: int, repeats: int) -> dict[str, object]:
    """Return the figures of one simulated cohort."""
    _simulate(folder, variants, people)
    script = counting_script()
    snapshot = script.Snapshot(folder)
    rows = script.asked_rows(snapshot, {"region": REGION})
    start_up = [sys.executable, "-I", "-B", "-c", "import numpy, pgenlib"]
    seconds = _medians(
        {
            "plink2": lambda: _plink2(folder),
            "counting": lambda: script.counted(snapshot, rows, by_sex=False),
            "counting_by_sex": lambda: script.counted(snapshot, rows, by_sex=True),
            "process_one_variant": _script(folder, {"variants": "rs1000", "stratify": "sex"}),
            "process": _script(folder, {"region": REGION}),
            "python_and_numpy": lambda: subprocess.run(start_up, check=True, env=_ENVIRONMENT),
        },
        repeats,
    )
    _script(folder, {"region": REGION})()
    _check_same(folder)
    return {
        "variants": variants,
        "people": people,
        "pgen_bytes": (folder / "genotypes.pgen").stat().st_size,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "ratio_to_plink2": {
            name: round(value / seconds["plink2"], 2) for name, value in seconds.items() if name != "plink2"
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=60_000)
    parser.add_argument("--people", type=int, default=2_500)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), given.variants, given.people, given.repeats)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
