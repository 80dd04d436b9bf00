"""Runs one command in a sandbox as an ordinary user and prints what it said.

    python -m tests.support.unprivileged_sandbox FOLDER COMMAND

The interpreter of the tests may lie below a folder that only root enters, so
that the box gets the system's instead.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from hansa.contract.manifest import Limits
from node_agent.execution.bubblewrap import BubblewrapSandbox, this_machine
from node_agent.execution.layout import Interpreter
from node_agent.execution.sandbox import BoxSpec

_ORDINARY = 12_345


def main(folder: Path, command: str) -> int:
    """Give up root, build a box around ``command``, print its output."""
    os.chown(folder, _ORDINARY, _ORDINARY)
    os.setgroups([])
    os.setgid(_ORDINARY)
    os.setuid(_ORDINARY)
    machine = this_machine("unprivileged")
    system = Interpreter(Path("/usr"), Path("/usr"), machine.interpreter.plugin)
    sandbox = BubblewrapSandbox(replace(machine, interpreter=system))
    spec = BoxSpec(
        name="run-1", bundle=folder / "bundle", data=folder / "data", work=folder / "work", limits=Limits(pids=50)
    )
    for inner in (spec.bundle, spec.data, spec.work):
        inner.mkdir()
    box = sandbox.open(spec)
    program = box.start_command(command, sys.stdout.fileno())
    status = program.exit_status()
    dead = box.kill()
    program.close()
    box.close()
    return status if dead else 99


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
