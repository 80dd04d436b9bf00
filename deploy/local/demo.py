"""`make demo`: four countries answer one question and not one genotype leaves.

Starts a federation in a folder of its own, asks for one variant's frequency,
shows table and plot, and stops everything again, whatever happens. The exit
status is the job's.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from deploy.local.cast import RESEARCHER
from deploy.local.ceremony import PROJECT
from deploy.local.commands import BIN, environment
from deploy.local.demo_data import DATASET, DemoDataError
from deploy.local.federation import DEFAULT_NODES, Wish, down, up
from deploy.local.layout import REPOSITORY, Layout, LocalFederationError

VARIANT: Final = "rs12913832"
_FOLDER: Final = REPOSITORY / ".cache" / "demo"
_PLOT: Final = REPOSITORY / ".cache" / f"{VARIANT}.png"
_LAST_LINES: Final = """\
What left each country: for this variant, how many people were looked at (people),
how many alleles they have (AN) and how many of those are the alternate one (AC),
after the country's own check that no small group is behind a figure.
What never left: genotypes, sample names, files, logs."""


def _narrate(started: float, text: str) -> None:
    print(f"[{time.monotonic() - started:5.1f} s] {text}", flush=True)


def _ask(layout: Layout, started: float) -> int:
    nodes = DEFAULT_NODES.split(",")
    _narrate(
        started,
        f"The researcher asks {', '.join(nodes)} for the frequency of {VARIANT} (blue or brown eyes). The signed "
        "question goes to each node; the counting happens there, in a sandbox without network.",
    )
    env = {**environment(), "HANSA_PROFILE": str(layout.profile(RESEARCHER))}
    datasets = [word for node in nodes for word in ("--dataset", f"{node}-{DATASET}")]
    question = [
        "allele-frequency",
        "--project",
        PROJECT,
        *datasets,
        "--param",
        f"variants={VARIANT}",
        "--deadline",
        "10m",
    ]
    command = [str(BIN / "hansa"), "job", "submit", *question, "--wait", "--output", "json"]
    asked = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, env=env)
    try:
        job_id = str(json.loads(asked.stdout)["job_id"])
    except (ValueError, KeyError):
        print(asked.stdout, end="")
        return asked.returncode or 1
    _narrate(started, "All have answered. The coordinator added the released counts up:")
    _PLOT.unlink(missing_ok=True)
    show = [str(BIN / "hansa"), "job", "result", job_id, "--plot", str(_PLOT)]
    shown = subprocess.run(show, check=False, env=env)
    return asked.returncode or shown.returncode


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def main() -> int:
    """Run the demonstration; return its exit status."""
    signal.signal(signal.SIGTERM, _interrupt)
    started = time.monotonic()
    layout = Layout(_FOLDER)
    status = 1
    try:
        # A demonstration that was killed may have left its processes and state.
        down(layout)
        _clear(_FOLDER)
        up(layout, Wish(), lambda text: _narrate(started, text))
        status = _ask(layout, started)
        print(_LAST_LINES, flush=True)
    except (LocalFederationError, DemoDataError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        status = 130
    finally:
        _narrate(started, "Stopping the federation.")
        down(layout)
    if status == 0:
        _clear(_FOLDER)
        _narrate(started, f"Done. The plot is {_PLOT.relative_to(REPOSITORY)}.")
    else:
        print(f"The demonstration failed; its state and logs are in {_FOLDER}.", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
