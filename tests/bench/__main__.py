"""Runs the benches one after the other and prints one JSON report.

`python -m tests.bench [NAME …]`; without names, all. Each bench is a program of
its own (`python -m tests.bench.bench_NAME`) that prints one JSON object with its
ratios against baselines measured in the same run.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def names() -> list[str]:
    """Return the benches there are."""
    return sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def measure(name: str) -> Any:
    """Return what the bench ``name`` printed last, or how it failed."""
    sys.stderr.write(f"bench {name} …\n")
    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.bench_{name}"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        return {"failed": done.returncode, "stderr": done.stderr[-2000:]}
    # Workers that a bench has started may have said something before.
    return json.loads(done.stdout[done.stdout.rfind("\n{") + 1 :])


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": [round(value, 2) for value in os.getloadavg()],
    }


def main() -> int:
    """Measure and print; fail when a bench has failed."""
    report = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    results = {name: measure(name) for name in (sys.argv[1:] or names())}
    sys.stdout.write(json.dumps({**report, "results": results}, indent=2) + "\n")
    return 1 if any("failed" in result for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
