"""What the sandbox itself costs: a command in a box of its own, against the same command bare.

A box here is whole: control group made, bubblewrap, the host user dropped, the
command, everything confirmed dead, the group removed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hansa.contract.manifest import Limits
from node_agent.execution.bubblewrap import BubblewrapSandbox, this_machine
from node_agent.execution.layout import BOX_GID, BOX_UID
from node_agent.execution.sandbox import BoxSpec

ROUNDS = 25
COMMANDS = {"true": "true", "python_numpy": "python -c 'import numpy'"}


def bare(command: str) -> None:
    """Run ``command`` as the node itself would."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(["/bin/bash", "-euo", "pipefail", "-c", command], check=True, env=environment)


def boxed(sandbox: BubblewrapSandbox, folder: Path, number: int, command: str) -> None:
    """Run ``command`` in a new box, to the end of the box.

    Raises:
        RuntimeError: it failed there.
    """
    work = folder / f"work-{number}"
    work.mkdir(mode=0o755)
    if os.geteuid() == 0:
        os.chown(work, BOX_UID, BOX_GID)
    limits = Limits(memory_bytes=512 << 20, cpus=2.0)
    box = sandbox.open(BoxSpec(name=f"bench-{number}", bundle=folder, data=folder, work=work, limits=limits))
    try:
        with (folder / "output").open("ab") as output:
            program = box.start_command(command, output.fileno())
        status = program.exit_status()
        program.close()
    finally:
        box.kill()
        box.close()
    if status != 0:
        raise RuntimeError(f"status {status}: {(folder / 'output').read_text()[-500:]}")


def median_ms(act: Callable[[int], None]) -> float:
    """Return the median of ``ROUNDS`` calls, in milliseconds, after one that does not count."""
    act(0)
    seconds = []
    for number in range(1, ROUNDS + 1):
        began = time.perf_counter()
        act(number)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000


def main() -> int:
    """Print the report."""
    sandbox = BubblewrapSandbox(this_machine("bench"))
    report: dict[str, object] = {"limits": sandbox.probe().limits}
    with tempfile.TemporaryDirectory(prefix="hansa-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for index, (label, command) in enumerate(COMMANDS.items()):
            plain = median_ms(lambda _number, command=command: bare(command))  # type: ignore[misc]
            start = (index + 1) * 1000
            inside = median_ms(
                lambda number, command=command, start=start: boxed(sandbox, folder, start + number, command)  # type: ignore[misc]
            )
            report[label] = {
                "bare_ms": round(plain, 1),
                "boxed_ms": round(inside, 1),
                "sandbox_ms": round(inside - plain, 1),
                "boxed_over_bare": round(inside / plain, 2),
            }
    sandbox.close()
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
