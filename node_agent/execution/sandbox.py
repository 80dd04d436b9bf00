"""What the runner asks of a sandbox, whatever builds it.

A sandbox holds a program that may be hostile: it sees the bundle and one
dataset snapshot read-only, one private scratch folder, no network, none of the
node's files or secrets, and may use no more than its limits.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from hansa.contract.errors import RunReason
from hansa.contract.manifest import Limits


class SandboxError(Exception):
    """The sandbox could not be built; the analysis is not to blame."""

    reason: Final = RunReason.SANDBOX_FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxSpec:
    """One execution's sandbox: what is in it and how much it may use."""

    # "<run id>-<execution>": unique on the node.
    name: str
    bundle: Path
    data: Path
    work: Path
    limits: Limits
    # Whether what finished rules leave is noted, for an execution after this one.
    resumable: bool = False


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """What the sandbox on this machine is worth, for ``hansa-node doctor``.

    ``limits`` says what enforces them: "cgroup v1", "cgroup v2" or "rlimits"
    (then memory is bounded per process only). ``remarks`` are for people.
    """

    driver: str
    usable: bool
    limits: str
    warm: bool
    remarks: tuple[str, ...] = ()


class Program(Protocol):
    """A program started in a box."""

    @property
    def ended_fd(self) -> int:
        """A descriptor that becomes readable when the program has ended."""

    def exit_status(self) -> int:
        """Return the exit status; 128 + n after signal n. Blocks until the end."""

    def close(self) -> None:
        """Give back what is left of it. A repeat does nothing."""


class Box(Protocol):
    """One execution's sandbox, from its making until everything in it is dead."""

    def start_workflow(self, snakefile: str, channel: socket.socket, output: int) -> Program:
        """Start Snakemake on the bundle.

        Args:
            snakefile: its name within the bundle.
            channel: the sandbox's end of the wire to the runner; the caller closes its copy.
            output: descriptor for standard output and error; likewise.

        Raises:
            SandboxError: nothing was started.
        """

    def start_command(self, command: str, output: int) -> Program:
        """Start a rule's shell command, in namespaces of its own but with the same mounts.

        Raises:
            SandboxError: nothing was started.
        """

    def kill(self) -> bool:
        """Kill everything in the box; return whether nothing of it runs any more."""

    def memory_kills(self) -> int:
        """Return how many processes died for the memory limit."""

    def process_refusals(self) -> int:
        """Return how often a process could not fork for the limit of processes; meaningful before ``kill`` only."""

    def close(self) -> None:
        """Take the box down after ``kill``. A repeat does nothing."""


class Sandbox(Protocol):
    """Builds boxes."""

    def open(self, spec: BoxSpec) -> Box:
        """Make the box of a new execution; what older executions of the run left over is killed.

        Raises:
            SandboxError: it cannot be made here.
        """

    def join(self, spec: BoxSpec) -> Box:
        """Return the box of an execution that another process has opened.

        Its ``kill`` ends only what was started through it.
        """

    def probe(self) -> SandboxReport:
        """Try the sandbox out and say what it is worth."""

    def close(self) -> None:
        """Stop what serves all boxes."""


PATH_IN_BOX: Final = "/usr/bin:/bin"


def environment(path: str, threads: int) -> Mapping[str, str]:
    """Return all of the environment that a program in a box gets.

    Args:
        path: folders of programs that come before the system's.
        threads: how many threads numeric libraries may start.
    """
    return {
        "PATH": f"{path}:{PATH_IN_BOX}",
        "HOME": "/work/.home",
        "XDG_CACHE_HOME": "/work/.home/cache",
        "XDG_CONFIG_HOME": "/work/.home/config",
        "XDG_DATA_HOME": "/work/.home/data",
        "XDG_CONFIG_DIRS": "/work/.home/none",
        "TMPDIR": "/tmp",  # noqa: S108 # the box's own
        "LANG": "C.UTF-8",
        "USER": "hansa",
        "LOGNAME": "hansa",
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
    }
