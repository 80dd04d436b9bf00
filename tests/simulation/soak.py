"""Many seeds on all cores, with a report: ``make soak``, or one seed again."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.simulation.federation import Outcome, live
from tests.simulation.world import Violation

REPORTS = Path(".cache/soak")
_AT_ONCE = 25


@dataclass
class Tally:
    """What all seeds together came to."""

    seeds: int = 0
    steps: int = 0
    jobs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome | str) -> None:
        """Count one seed in; a text is a violation."""
        self.seeds += 1
        if isinstance(outcome, str):
            self.violations.append(outcome)
            return
        self.steps += outcome.steps
        self.jobs += outcome.jobs
        self.faults += outcome.faults
        self.ends += outcome.ends


def one(seed: int) -> Outcome | str:
    """Return what became of ``seed``, or the violation that it found."""
    try:
        return live(seed)
    except Violation as found:
        return str(found)


def soak(first: int, faults: int, processes: int) -> tuple[Tally, float]:
    """Run seeds from ``first`` on until ``faults`` were injected; return the tally and the seconds."""
    begun, tally, seed = time.monotonic(), Tally(), first
    with ProcessPoolExecutor(processes) as pool:
        while tally.faults.total() < faults:
            for outcome in pool.map(one, range(seed, seed + _AT_ONCE)):
                tally.add(outcome)
            seed += _AT_ONCE
            seconds = time.monotonic() - begun
            line = f"{tally.faults.total():>9} faults, {tally.seeds} seeds, {len(tally.violations)} violations"
            print(f"{line}, {seconds:.0f} s", flush=True)  # noqa: T201 - its output
    return tally, time.monotonic() - begun


def report(first: int, tally: Tally, seconds: float) -> dict[str, Any]:
    """Return what is written down of a run."""
    total = tally.faults.total()
    return {
        "first_seed": first,
        "seeds": tally.seeds,
        "seconds": round(seconds),
        "cores": os.cpu_count(),
        "steps_each_checked": tally.steps,
        "jobs": tally.jobs,
        "faults": total,
        "faults_by_kind": dict(tally.faults.most_common()),
        "jobs_by_end": dict(tally.ends.most_common()),
        "violations": tally.violations,
        "supports_per_fault_95_percent": None if tally.violations else f"at most {3 / total:.1e}",
    }


def write(found: dict[str, Any]) -> Path:
    """Write the report as JSON and as text; return the latter's path."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "# Soak of the simulator",
        "",
        *(f"* {name}: {found[name]}" for name in found if not isinstance(found[name], dict | list)),
        "",
        "| fault | times |",
        "|---|---:|",
        *(f"| {kind} | {times} |" for kind, times in found["faults_by_kind"].items()),
        "",
        "| job ended | times |",
        "|---|---:|",
        *(f"| {end} | {times} |" for end, times in found["jobs_by_end"].items()),
        "",
        *(f"```\n{violation}\n```" for violation in found["violations"]),
    ]
    path = REPORTS / "report.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Run one seed again, or soak; return the exit status."""
    parser = argparse.ArgumentParser(prog="tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--first-seed", type=int, default=10_000_000)
    parser.add_argument("--faults", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    wanted = parser.parse_args(arguments)
    if wanted.seed is not None:
        found = one(wanted.seed)
        print(found)  # noqa: T201
        return int(isinstance(found, str))
    tally, seconds = soak(wanted.first_seed, wanted.faults, wanted.processes)
    path = write(report(wanted.first_seed, tally, seconds))
    print(f"report: {path}")  # noqa: T201
    return int(bool(tally.violations))


if __name__ == "__main__":
    sys.exit(main())
