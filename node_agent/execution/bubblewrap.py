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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

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
_LEFT_OVER_SECONDS: Final = 60.0
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
        """Let a child of the fork server enter a box that is built around a holder."""
        if self.fork_server is None:
            raise SandboxError("there is no fork server")
        hold = self._start_holder()
        try:
            first = os.pidfd_open(self.started[-1].first_pid)
            try:
                request = {
                    "snakefile": snakefile,
                    "cores": cores,
                    "environment": dict(self._environment()),
                    "file_bytes": self.spec.limits.scratch_bytes,
                    "address_bytes": None if self.group else self.spec.limits.memory_bytes,
                }
                descriptors = (first, channel.fileno(), output)
                return self.fork_server.start(request, descriptors, self._attach, hold)
            finally:
                os.close(first)
        except BaseException:
            hold.close()
            raise

    def _start_holder(self) -> socket.socket:
        """Start what holds the box's namespaces, until the returned socket closes.

        ``cat`` echoes once everything is mounted.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._start(("/bin/cat",), output=theirs.fileno(), stdin=theirs.fileno())
        ours.sendall(b"?")
        if ours.recv(1) != b"?":
            ours.close()
            raise SandboxError("the box's holder did not start")
        return ours

    def start_command(self, command: str, output: int) -> Program:
        """See ``sandbox.Box``."""
        # By descriptor: one argument could not be longer than 128 KiB, and arguments show in ps.
        with _memory_file(command.encode()) as script:
            return self._start((*_SHELL, f"/dev/fd/{script}"), output=output, passed=(script,))

    def _start(
        self, words: Sequence[str], *, output: int, passed: Sequence[int] = (), stdin: int = subprocess.DEVNULL
    ) -> _Bwrap:
        who, drop = layout.identity(privileged=self.machine.privileged)
        arguments = [*_NAMESPACES, *who, "--die-with-parent", "--new-session"]
        arguments += layout.system_mounts(self.machine.interpreter, self.spec.limits.memory_bytes)
        arguments += layout.box_mounts(self.spec.bundle, self.spec.data, self.spec.work)
        arguments += layout.environment_arguments(self._environment())
        launched = _launch(
            self.machine,
            arguments,
            [*drop, *self._resource_limits(), *words],
            _Descriptors(stdin=stdin, output=output, passed=passed),
            self._attach,
        )
        self.started.append(launched)
        return launched

    def _attach(self, pid: int) -> None:
        if self.group is not None:
            self.group.attach(pid)

    def _environment(self) -> Mapping[str, str]:
        return environment(self.machine.interpreter.bin, max(int(self.spec.limits.cpus), 1))

    def _resource_limits(self) -> list[str]:
        words = ["/usr/bin/prlimit", "--core=0", f"--fsize={self.spec.limits.scratch_bytes}"]
        if self.group is None:
            # Second best: per process, not for all of them together.
            words.append(f"--as={self.spec.limits.memory_bytes}")
            if self.machine.privileged:
                words.append(f"--nproc={self.spec.limits.pids}")
        return [*words, "--"]

    def kill(self) -> bool:
        """See ``sandbox.Box``."""
        dead = [bwrap.kill() for bwrap in self.started]
        if self.owner and self.group is not None:
            dead.append(self.group.kill(_KILL_PATIENCE_SECONDS))
        return all(dead)

    def memory_kills(self) -> int:
        """See ``sandbox.Box``."""
        return self.group.memory_kills() if self.group is not None else 0

    def process_refusals(self) -> int:
        """See ``sandbox.Box``."""
        return self.group.process_refusals() if self.group is not None else 0

    def close(self) -> None:
        """See ``sandbox.Box``."""
        for bwrap in self.started:
            bwrap.close()
        if self.owner and self.group is not None:
            self.group.remove()


@dataclass(slots=True)
class BubblewrapSandbox:
    """See ``sandbox.Sandbox``.

    Args:
        machine: what there is to work with.
        warm: start workflows as children of a fork server; needs root, since
            entering namespaces does.
    """

    machine: Machine
    warm: bool = True
    _fork_server: ForkServer | None = None

    def open(self, spec: BoxSpec) -> Box:
        """See ``sandbox.Sandbox``."""
        group = self._group(spec)
        if group is not None and self.machine.groups is not None:
            run_id = spec.name.rpartition("-")[0]
            for old in self.machine.groups.left_over(self.machine.node, f"{run_id}-"):
                if not old.kill(_KILL_PATIENCE_SECONDS):
                    raise SandboxError("an older execution cannot be killed")
                old.remove()
            limits = spec.limits
            try:
                # Another worker of the node may have swept the folder away since.
                self.machine.groups.open_for(self.machine.node)
                group.create(GroupLimits(limits.memory_bytes, limits.pids, limits.cpus))
            except OSError as error:
                raise SandboxError(f"no control group: {error}") from error
        return BubblewrapBox(self.machine, spec, group, owner=True, fork_server=self._warm_server())

    def join(self, spec: BoxSpec) -> Box:
        """See ``sandbox.Sandbox``."""
        return BubblewrapBox(self.machine, spec, self._group(spec), owner=False, fork_server=None)

    def _group(self, spec: BoxSpec) -> Group | None:
        groups = self.machine.groups
        return groups.group(self.machine.node, spec.name) if groups is not None else None

    def _warm_server(self) -> ForkServer | None:
        if not self.warm or not self.machine.privileged or self.machine.bwrap is None:
            return None
        if self._fork_server is None:
            self._fork_server = ForkServer(self.machine.bwrap, self.machine.interpreter, self.machine.seccomp)
        return self._fork_server

    def warm_up(self) -> None:
        """Start the fork server now rather than with the first run. A failure is logged only."""
        server = self._warm_server()
        if server is not None:
            server.warm_up()

    def probe(self) -> SandboxReport:
        """See ``sandbox.Sandbox``."""
        machine = self.machine
        limits = f"cgroup v{machine.groups.version}" if machine.groups is not None else "rlimits"
        remarks = _remarks(machine)
        problem = layout.obstacle(machine.interpreter) or self._try_out()
        if problem is not None:
            remarks = (problem, *remarks)
        warm = self._warm_server() is not None
        return SandboxReport("bubblewrap", usable=problem is None, limits=limits, warm=warm, remarks=remarks)

    def _try_out(self) -> str | None:
        if self.machine.bwrap is None:
            return "bubblewrap is missing; install the package bubblewrap"
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
            here = Path(folder)
            here.chmod(0o755)  # an empty folder, bound into the box
            spec = BoxSpec(name="probe-0", bundle=here, data=here, work=here, limits=_PROBE_LIMITS)
            box: Box | None = None
            try:
                box = self.open(spec)
                status = box.start_command(f"{self.machine.interpreter.python} -I -c ''", output.fileno()).exit_status()
            except SandboxError as error:
                return str(error)
            finally:
                if box is not None:
                    box.kill()
                    box.close()
            output.seek(0)
            said = output.read(400).decode(errors="replace").strip()
        return None if status == 0 else f"a command in the sandbox ended with {status}: {said}"

    def close(self) -> None:
        """See ``sandbox.Sandbox``."""
        if self._fork_server is not None:
            self._fork_server.close()
            self._fork_server = None
        if self.machine.groups is not None:
            self.machine.groups.sweep(self.machine.node, time.time() - _LEFT_OVER_SECONDS)


def _remarks(machine: Machine) -> tuple[str, ...]:
    remarks = []
    if machine.groups is None:
        remarks.append("no control groups may be made here: memory is bounded per process only, CPU not at all")
    if machine.seccomp is None:
        remarks.append(f"no system-call filter for {platform.machine()}")
    if not machine.privileged:
        remarks.append("not root: runs start cold, about a second each")
    return tuple(remarks)


@dataclass(frozen=True, slots=True)
class _Descriptors:
    stdin: int
    output: int
    passed: Sequence[int]


def _launch(
    machine: Machine,
    arguments: Sequence[str],
    words: Sequence[str],
    descriptors: _Descriptors,
    attach: Callable[[int], None],
) -> _Bwrap:
    """Start bubblewrap; its program begins only after ``attach(pid)`` has bounded it."""
    if machine.bwrap is None:
        raise SandboxError("bubblewrap is missing")
    with contextlib.ExitStack() as stack:
        info, block = stack.enter_context(_Pipe()), stack.enter_context(_Pipe())
        own = [*arguments, "--info-fd", str(info.write), "--block-fd", str(block.read)]
        passed = [info.write, block.read, *descriptors.passed]
        if machine.seccomp is not None:
            seccomp = stack.enter_context(_memory_file(machine.seccomp))
            own += ["--seccomp", str(seccomp)]
            passed.append(seccomp)
        # By descriptor, so that paths of the node show neither in ps nor in the box's /proc.
        argument_file = stack.enter_context(_memory_file(b"".join(word.encode() + b"\0" for word in own)))
        monitor = subprocess.Popen(
            [machine.bwrap, "--args", str(argument_file), "--", *words],
            stdin=descriptors.stdin,
            stdout=descriptors.output,
            stderr=descriptors.output,
            pass_fds=[argument_file, *passed],
            env={},
            umask=0o022,
        )
        info.close_write()
        try:
            first = _first_pid(info.read)
            attach(first)
            os.write(block.write, b"!")
        except (OSError, ValueError, KeyError, TypeError) as error:
            monitor.kill()
            raise SandboxError(f"bubblewrap did not start ({monitor.wait()}): {error}") from error
        return _Bwrap(monitor, first, os.pidfd_open(monitor.pid))


class _Pipe:
    """A pipe whose ends are closed with its context."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()

    def close_write(self) -> None:
        if self.write >= 0:
            os.close(self.write)
            self.write = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_write()
        os.close(self.read)


def _first_pid(info: int) -> int:
    """Return the pid that bubblewrap reports for the first process in the box."""
    text = b""
    while not text.rstrip().endswith(b"}"):
        part = os.read(info, 4096)
        if not part:
            raise ValueError("nothing reported")
        text += part
    pid = json.loads(text)["child-pid"]
    if not isinstance(pid, int):
        raise TypeError(pid)
    return pid


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    """Yield the descriptor of an anonymous file with ``content``, at its beginning."""
    descriptor = os.memfd_create("hansa", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
