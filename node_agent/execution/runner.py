"""Runs one claimed execution from its empty folder to its report.

One thread follows the sandbox (output, rules, limits), another gives the agent
signs of life. How the execution ended is decided by one pure function, after
everything in the sandbox is confirmed dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from hansa.contract.errors import HansaError, RunReason
from hansa.contract.manifest import parse_manifest
from hansa.contract.summary import parse_summary
from hansa.runtime.clock import Clock
from node_agent.execution.agent_client import Claimed, Finish, Outcome
from node_agent.execution.collector import OutputError, collect
from node_agent.execution.heart import Heart
from node_agent.execution.layout import BOX_GID, BOX_UID
from node_agent.execution.resumption import carry_over
from node_agent.execution.rules import EnqueueRule, RuleDesk
from node_agent.execution.run_log import RunLog
from node_agent.execution.sandbox import Box, BoxSpec, Program, Sandbox, SandboxError
from node_agent.execution.scratch import is_within
from snakemake_executor_plugin_hansa.channel import ChannelError

_log = structlog.get_logger(__name__)

_TICK_SECONDS: Final = 1.0
_READ_BYTES: Final = 1 << 18
_PIPE_BYTES: Final = 1 << 20
# What the fork server's child ends with when it could not even enter the box.
_NOT_ENTERED: Final = 70
_PARAMETERS: Final = "params.json"
_KILLED: Final = 128 + signal.SIGKILL
# The next execution may do better: these cost an execution, and only the last one ends the run.
_WORTH_ANOTHER_TRY: Final = frozenset({RunReason.RUN_LOST, RunReason.SANDBOX_FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What was seen of an execution, once nothing of it runs any more.

    ``stopped`` is why we killed it; None when it ended by itself. ``killed``
    says that signal 9 ended it or one of its rules, and it was not us.
    """

    stopped: RunReason | None
    status: int
    memory_kills: int = 0
    process_refusals: int = 0
    scratch_full: bool = False
    killed: bool = False


def failure(ending: Ending) -> RunReason | None:
    """Return why the execution failed; None if its output may be looked at.

    What we stopped has the reason we stopped it for. A process killed for
    memory may have been one that the workflow could do without: only a
    workflow that failed as well has failed for memory, or for another limit.
    """
    if ending.stopped is not None:
        return ending.stopped
    if ending.status == 0:
        return None
    seen = (
        (ending.memory_kills > 0, RunReason.MEMORY_LIMIT),
        (ending.process_refusals > 0, RunReason.PROCESS_LIMIT),
        (ending.scratch_full, RunReason.SCRATCH_LIMIT),
        (ending.status == _NOT_ENTERED, RunReason.SANDBOX_FAILED),
        # By somebody outside, or by the host for want of memory: the analysis is not to blame.
        (ending.killed or ending.status == _KILLED, RunReason.RUN_LOST),
    )
    return next((reason for is_so, reason in seen if is_so), RunReason.ANALYSIS_FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Runs executions, each in the calling thread.

    Args:
        sandbox: builds their boxes.
        enqueue_rule: puts a rule on the node's queue.
        clock: for the job's deadline.
        draw_incident: makes a new incident number, 8 hexadecimal digits in upper case.
    """

    sandbox: Sandbox
    enqueue_rule: EnqueueRule
    clock: Clock
    draw_incident: Callable[[], str]

    def run(self, claimed: Claimed, heart: Heart) -> Finish | None:
        """Run ``claimed``; return the report for the agent, None if it wants none.

        Returns only when nothing of the execution runs any more.
        """
        _log.info("run_started", run_id=claimed.run_id, execution=claimed.execution)
        _make_folders(claimed)
        resumable = _is_resumable(claimed)
        with RunLog(claimed.control_dir / "log") as log:
            reason, summary = self._outcome(claimed, heart, log, resumable=resumable)
            if heart.superseded:
                _log.info("run_superseded", run_id=claimed.run_id, execution=claimed.execution)
                return None
            return self._report(claimed, reason, summary, log)

    def _report(self, claimed: Claimed, reason: RunReason | None, summary: str | None, log: RunLog) -> Finish:
        names = {"run_id": claimed.run_id, "execution": claimed.execution}
        report = partial(Finish, run_id=claimed.run_id, execution=claimed.execution)
        if reason is None:
            _log.info("run_succeeded", **names)
            return report(outcome=Outcome.SUMMARY, summary=summary)
        if reason is RunReason.CANCELLED:
            _log.info("run_cancelled", **names)
            return report(outcome=Outcome.CANCELLED, reason=reason)
        incident = self.draw_incident()
        _log.warning("run_failed", **names, reason=reason.value, incident=incident)
        log.write(f"\nhansa: {reason.value}, incident {incident}\n".encode())
        (claimed.control_dir / "incident").write_text(f"{incident} {reason.value}\n")
        outcome = Outcome.LOST if reason in _WORTH_ANOTHER_TRY else Outcome.FAILED
        return report(outcome=outcome, reason=reason, incident=incident)

    def _outcome(
        self, claimed: Claimed, heart: Heart, log: RunLog, *, resumable: bool
    ) -> tuple[RunReason | None, str | None]:
        try:
            if resumable:
                _carry_over(claimed, heart, log)
            ending = self._execute(claimed, heart, log, resumable=resumable)
            reason = failure(ending)
            if reason is not None:
                return reason, None
            return None, _summary(claimed)
        except OutputError as error:
            log.write(f"\nhansa: {error}\n".encode())
            return error.reason, None
        except (SandboxError, OSError) as error:
            _log.exception("sandbox_failed", run_id=claimed.run_id, execution=claimed.execution)
            log.write(f"\nhansa: {error}\n".encode())
            return RunReason.SANDBOX_FAILED, None

    def _execute(self, claimed: Claimed, heart: Heart, log: RunLog, *, resumable: bool) -> Ending:
        """Run the workflow in a box and take the box down."""
        spec = BoxSpec(
            name=claimed.name,
            bundle=claimed.bundle_dir,
            data=claimed.snapshot_dir,
            work=claimed.work_dir,
            limits=claimed.limits,
            resumable=resumable,
        )
        with contextlib.ExitStack() as stack:
            box = self.sandbox.open(spec)
            stack.callback(box.close)
            stack.callback(_kill, box)
            desk = RuleDesk(claimed.control_dir, spec, self.enqueue_rule, log)
            stack.callback(_end, box, desk)
            channel, theirs = socket.socketpair()
            output, write = os.pipe()
            stack.callback(os.close, output)
            stack.enter_context(channel)
            try:
                program = box.start_workflow(claimed.snakefile, theirs, write)
            finally:
                theirs.close()
                os.close(write)
            stack.callback(program.close)
            follower = _Follower(claimed, heart, desk, log, _Wires(program, channel, output))
            stopped = follower.follow(time.monotonic() + claimed.seconds_left(self.clock()))
            # Killing the group forbids it to fork, and what is refused then does not count.
            refusals = box.process_refusals()
            _end(box, desk)
            follower.drain()
            status = program.exit_status()
            return Ending(
                stopped=stopped,
                status=status,
                memory_kills=box.memory_kills(),
                process_refusals=refusals,
                # Measured only where it may be the reason: there may be many files.
                scratch_full=status != 0 and not is_within(claimed.work_dir, claimed.limits.scratch_bytes),
                killed=desk.has_lost_rule,
            )


@dataclass(frozen=True, slots=True)
class _Wires:
    program: Program
    channel: socket.socket
    output: int


class _Follower:
    """Watches one running box until it ends or has to be ended."""

    def __init__(self, claimed: Claimed, heart: Heart, desk: RuleDesk, log: RunLog, wires: _Wires) -> None:
        self._claimed, self._heart, self._desk, self._log, self._wires = claimed, heart, desk, log, wires
        self._next_tick = time.monotonic() + _TICK_SECONDS
        with contextlib.suppress(OSError):
            fcntl.fcntl(wires.output, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._poll = select.poll()
        for descriptor in (wires.output, wires.program.ended_fd, wires.channel.fileno(), desk.bell_fd, heart.news_fd):
            self._poll.register(descriptor, select.POLLIN)

    def follow(self, give_up: float) -> RunReason | None:
        """Return when the program has ended (None), or with the reason to end it."""
        while True:
            now = time.monotonic()
            if now >= give_up:
                return RunReason.TIME_LIMIT
            wait = min(self._next_tick, give_up) - now
            ready = dict(self._poll.poll(max(wait, 0) * 1000 + 1))
            if self._heart.wants_end:
                return RunReason.CANCELLED
            if time.monotonic() >= self._next_tick and not self._tick():
                return RunReason.SCRATCH_LIMIT
            if not self._serve(ready):
                return RunReason.ANALYSIS_FAILED
            if self._wires.program.ended_fd in ready and self._wires.output not in ready:
                return None

    def _tick(self) -> bool:
        """Look after lost rules and the scratch folder; return whether the run may go on."""
        self._next_tick = time.monotonic() + _TICK_SECONDS
        self._answer(self._desk.tend())
        if is_within(self._claimed.work_dir, self._claimed.limits.scratch_bytes):
            return True
        self._log.write(b"\nhansa: the scratch folder is larger than its limit\n")
        return False

    def _serve(self, ready: Mapping[int, int]) -> bool:
        """Handle what is ready; return whether the sandbox keeps to the wire."""
        wires = self._wires
        if wires.output in ready:
            data = os.read(wires.output, _READ_BYTES)
            self._log.write(data)
            if not data:
                self._poll.unregister(wires.output)
        if self._desk.bell_fd in ready:
            self._answer(self._desk.ended())
        if wires.channel.fileno() in ready:
            return self._receive()
        return True

    def _receive(self) -> bool:
        try:
            data = self._wires.channel.recv(_READ_BYTES)
            if not data:
                self._poll.unregister(self._wires.channel)
            self._desk.receive(data)
        except (ChannelError, OSError) as error:
            self._log.write(f"\nhansa: the workflow broke the executor's protocol: {error}\n".encode())
            return False
        return True

    def _answer(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            # A sandbox that does not listen loses its answers, not our time.
            with contextlib.suppress(OSError):
                self._wires.channel.send(line, socket.MSG_DONTWAIT)

    def drain(self) -> None:
        """Read the rest of the output; every writer is dead by now."""
        while data := os.read(self._wires.output, _READ_BYTES):
            self._log.write(data)


def _end(box: Box, desk: RuleDesk) -> None:
    """End the workflow and its rules, wherever they run; come back only when that is confirmed.

    Killed twice: a worker that was just about to start a rule may have put it
    into the box after the first time, but never after it gave its lock free.
    """
    desk.hang_up()
    _kill(box)
    if not desk.wait_for_workers():
        _log.error("rule_workers_stuck")
    _kill(box)


def _kill(box: Box) -> None:
    """Kill everything in the box; come back only when that is confirmed."""
    while not box.kill():
        _log.error("box_not_empty")


def _make_folders(claimed: Claimed) -> None:
    """Make the scratch folder, the analysis's own, and the control folder, ours alone."""
    work, control = claimed.work_dir, claimed.control_dir
    for folder in (work, control):
        if folder.exists():
            # Left by a worker that died right after its claim; the number was never ours before.
            shutil.rmtree(folder)
    work.mkdir(mode=0o711, parents=True)
    control.mkdir(mode=0o700)
    parameters = work / _PARAMETERS
    parameters.write_text(json.dumps(dict(claimed.parameters)))
    parameters.chmod(0o444)
    # bubblewrap enters it before it drops to the box's user; the folders above are closed to others.
    work.chmod(0o711)
    if os.geteuid() == 0:
        os.chown(work, BOX_UID, BOX_GID)


def _is_resumable(claimed: Claimed) -> bool:
    try:
        return parse_manifest((claimed.bundle_dir / "manifest.json").read_bytes()).resumable
    except (HansaError, OSError):
        return False


def _carry_over(claimed: Claimed, heart: Heart, log: RunLog) -> None:
    """Begin with what finished rules of the execution before left; the box's user may write it."""
    count = carry_over(
        claimed.control_dir,
        claimed.work_dir,
        max_bytes=claimed.limits.scratch_bytes,
        goes_on=lambda: not heart.wants_end,
    )
    if not count:
        return
    log.write(f"hansa: begins with {count} files of the execution before\n".encode())
    if os.geteuid() == 0:
        for path in claimed.work_dir.rglob("*"):
            if path != claimed.work_dir / _PARAMETERS:
                os.chown(path, BOX_UID, BOX_GID, follow_symlinks=False)


def _summary(claimed: Claimed) -> str:
    """Return the summary's text, if it is what the manifest declares.

    Raises:
        OutputError: it is not there or not acceptable.
    """
    text = collect(claimed.work_dir, claimed.limits.summary_bytes)
    try:
        manifest = parse_manifest((claimed.bundle_dir / "manifest.json").read_bytes())
        parse_summary(text.encode(), manifest.summary, released_only=False)
    except HansaError as error:
        raise OutputError(RunReason.SUMMARY_INVALID, f"{error.field}: {error}") from error
    return text
