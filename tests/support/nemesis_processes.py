"""The processes of this namespace, as /proc shows them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.local.processes import Process


@dataclass(frozen=True, slots=True)
class Living:
    """A process that is no zombie: who it is, what it runs, and its control groups."""

    pid: int
    parent: int
    started: str
    command: str
    groups: str

    @property
    def process(self) -> Process:
        """The same, to be signalled."""
        return Process(self.pid, self.started)


def living() -> Iterator[Living]:
    """Yield every process of this namespace."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                # state, parent, …, start time: after the name in parentheses (proc(5)).
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if stat[0] != "Z":
                    groups = (entry / "cgroup").read_text()
                    yield Living(int(entry.name), int(stat[1]), stat[19], command, groups)


def kill(process: Process) -> None:
    """Kill without a warning."""
    process.signal(signal.SIGKILL)
