"""The default sandbox: bubblewrap, control groups, a seccomp filter.

The whole Snakemake process runs inside, because a Snakefile is a program.
docs/adr/0005-sandbox.md says what was measured and why it is built like this.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from hansa.contract.manifest import Limits
from node_agent.execution import layout
from node_agent.execution.cgroups import Group, GroupLimits, Groups, find_groups
from node_agent.execution.inside import PROGRAM_DIR
from node_agent.execution.sandbox import Box, BoxSpec, Program, SandboxError, SandboxReport, environment
from node_agent.execution.seccomp import filter_program
from node_agent.execution.warm import ForkServer

_log = structlog.get_logger(__name__)

_KILL_PATIENCE_SECONDS: Final = 20.0
_SHELL: Final = ("/bin/bash", "-euo", "pipefail")
_NAMESPACES: Final = ("--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", "hansa")
_PROBE_LIMITS: Final = Limits(wall_seconds=10, memory_bytes=64 << 20, pids=16, scratch_bytes=1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What bubblewrap finds on this machine; collected once, by ``this_machine``."""

    # Distinguishes the nodes of one machine in the names of control groups.
    node: str
    bwrap: str | None
    privileged: bool
    interpreter: layout.Interpreter
    groups: Groups | None
    seccomp: bytes | None


def this_machine(node: str) -> Machine:
    """Look at the machine; make the parent of the control groups where that is allowed."""
    groups = find_groups(Path("/proc/self/cgroup").read_text())
    if groups is not None:
        try:
            groups.open_for(node)
        except OSError:
            groups = None
    return Machine(
        node=node,
        bwrap=shutil.which("bwrap"),
        privileged=os.geteuid() == 0,
        interpreter=layout.this_interpreter(),
        groups=groups,
        seccomp=filter_program(platform.machine()),
    )


@dataclass(slots=True)
class _Bwrap:
    """A running bubblewrap: the monitor outside, and the first process of its pid namespace."""

    monitor: subprocess.Popen[bytes]
    first_pid: int
    pidfd: int

    @property
    def ended_fd(self) -> int:
        return self.pidfd

    def exit_status(self) -> int:
        status = self.monitor.wait()
        return status if status >= 0 else 128 - status

    def kill(self) -> bool:
        """End the pid namespace, and with it everything in it; wait until it is gone."""
        if self.monitor.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.first_pid, signal.SIGKILL)
        try:
            self.monitor.wait(_KILL_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


@dataclass(slots=True)
class BubblewrapBox:
    """See ``sandbox.Box``."""

    machine: Machine
    spec: BoxSpec
    group: Group | None
    # Whether this process opened the box, or only joined it.
    owner: bool
    fork_server: ForkServer | None
    started: list[_Bwrap] = field(default_factory=list)

    def start_workflow(self, snakefile: str, channel: socket.socket, output: int) -> Program:
        """See ``sandbox.Box``."""
        cores = max(int(self.spec.limits.cpus), 1)
        if self.fork_server is not None:
            try:
                return self._start_warm(snakefile, cores, channel, output)
            except SandboxError as error:
                _log.warning("warm_start_failed", name=self.spec.name, error=str(error))
        program = (self.machine.interpreter.python, "-I", f"{PROGRAM_DIR}/inside.py")
        words = (*program, snakefile, str(cores), str(channel.fileno()))
        return self._start(words, output=output, passed=(channel.fileno(),))

    def _start_warm(self, snakefile: str, cores: int, channel: socket.socket, output: int) -> Program:
        """Let a child of the fork server enter a box that is built around a holder.

        ``cat`` echoes once everything is mounted, and holds the namespaces
        until its standard input closes.
        """
        if self.fork_server is None:
            raise SandboxError("no fork server")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            holder = self._start(("/bin/cat",), output=theirs.fileno(), stdin=theirs.fileno())
            ours.sendall(b"?")
            theirs.close()
            if ours.recv(1) != b"?":
                raise SandboxError("the holder did not start")
            held = ours.detach()
        try:
            attach = self.group.attach if self.group is not None else None
            return self.fork_server.start(
                request={
                    "snakefile": snakefile,
                    "cores": cores,
                    "environment": dict(self._environment()),
                    "file_bytes": self.spec.limits.scratch_bytes,
                },
                descriptors=(holder.pidfd_of_first(), channel.fileno(), output),
                attach=attach,
                hold=held,
            )
        except BaseException:
            os.close(held)
            raise

    def start_command(self, command: str, output: int) -> Program:
        """See ``sandbox.Box``."""
        with _memory_file(command.encode()) as script:
            return self._start((*_SHELL, f"/dev/fd/{script}"), output=output, passed=(script,))
