"""Rules on their way to other workers and back.

The runner writes a rule's command into the execution's control folder, which no
sandbox sees, and sends the rule's number through the broker. A rules worker on
the same host (the folder is the meeting place) takes the rule by locking its
file, runs it in a sandbox of its own, writes the exit status and rings a bell.

* The lock decides, not the message: a message that comes twice finds the file
  locked or the status written.
* The bell is a FIFO that only the runner reads. When the runner dies, however,
  the kernel tells every rules worker at once, and they kill what they run.
* A lock that is free without a status means that the rules worker has died.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hansa.contract.ids import is_run_id
from hansa.contract.manifest import Limits
from node_agent.execution.resumption import note_finished
from node_agent.execution.run_log import RunLog
from node_agent.execution.sandbox import BoxSpec, Sandbox, SandboxError
from snakemake_executor_plugin_hansa.channel import (
    MAX_REQUEST_BYTES,
    ChannelError,
    RuleRequest,
    answer_line,
    parse_request,
)

_log = structlog.get_logger(__name__)

_BELL: Final = "bell"
_BOX: Final = "box.json"
_MAX_TRIES: Final = 3
_LOST: Final = 137
_NOT_STARTED: Final = 126
_MESSAGE_PATIENCE_SECONDS: Final = 10.0
_HANG_UP_PATIENCE_SECONDS: Final = 20.0
_STEP_SECONDS: Final = 0.005
_RULE_LOG_BYTES: Final = 256 << 10
_READ_BYTES: Final = 1 << 16

# (run id, execution, rule number) -> sends the message.
EnqueueRule = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of one rule's job in the control folder."""

    folder: Path
    number: int

    @property
    def command(self) -> Path:
        return self.folder / f"rule-{self.number}.command"

    @property
    def lock(self) -> Path:
        return self.folder / f"rule-{self.number}.lock"

    @property
    def status(self) -> Path:
        return self.folder / f"rule-{self.number}.status"

    @property
    def log(self) -> Path:
        return self.folder / f"rule-{self.number}.log"


class RuleDesk:
    """The runner's side: takes requests from the sandbox, hands answers back."""

    def __init__(self, control_dir: Path, spec: BoxSpec, enqueue: EnqueueRule, log: RunLog) -> None:
        self._folder, self._enqueue, self._log = control_dir, enqueue, log
        self._run_id, _, execution = spec.name.rpartition("-")
        self._execution = int(execution)
        self._buffer = b""
        self._last = 0
        self._work, self._resumable = spec.work, spec.resumable
        self._open: dict[int, int] = {}  # tries by rule number
        self._outputs: dict[int, Sequence[str]] = {}
        self._sent: dict[int, float] = {}
        self._unsent: set[int] = set()
        # Whether a rule ended by the signal that nobody can catch, or its workers were lost again and again.
        self.has_lost_rule = False
        _write_spec(control_dir / _BOX, spec)
        os.mkfifo(control_dir / _BELL, 0o600)
        # Also open for writing, so that it never reads as ended.
        self.bell_fd = os.open(control_dir / _BELL, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def receive(self, data: bytes) -> None:
        """Take bytes from the sandbox; every whole request is put on its way.

        Raises:
            ChannelError: the sandbox does not keep to the wire; the run is to end.
        """
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            request = parse_request(line, self._last + 1)
            self._last = request.number
            self._begin(request)
        if len(self._buffer) > MAX_REQUEST_BYTES:
            raise ChannelError("a request without end")

    def _begin(self, request: RuleRequest) -> None:
        files = _Files(self._folder, request.number)
        files.command.write_text(request.command, encoding="utf-8")
        self._open[request.number] = 0
        if self._resumable:
            self._outputs[request.number] = request.outputs
        self._send(request.number)

    def _send(self, number: int) -> None:
        try:
            self._enqueue(self._run_id, self._execution, number)
        except Exception:
            # The broker is away; ``tend`` tries again.
            _log.exception("enqueue_rule_failed", run_id=self._run_id, rule=number)
            self._unsent.add(number)
        else:
            self._unsent.discard(number)
            self._sent[number] = time.monotonic()

    def ended(self) -> Iterator[bytes]:
        """Yield the answer to each rule that has ended since the last call."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self.bell_fd, _READ_BYTES)) == _READ_BYTES:
                pass
        for number in list(self._open):
            files = _Files(self._folder, number)
            try:
                status = int(files.status.read_text())
            except (OSError, ValueError):
                continue
            yield self._settle(number, status)

    def _settle(self, number: int, status: int) -> bytes:
        del self._open[number]
        self._sent.pop(number, None)
        self.has_lost_rule |= status == _LOST
        outputs = self._outputs.pop(number, ())
        if status == 0 and outputs:
            note_finished(self._folder, self._work, outputs)
        files = _Files(self._folder, number)
        with contextlib.suppress(OSError):
            self._log.write(files.log.read_bytes())
        for path in (files.command, files.log, files.lock, files.status):
            path.unlink(missing_ok=True)
        return answer_line(number, status)

    def tend(self) -> Iterator[bytes]:
        """Send again what was lost; yield the answers to rules that were lost too often."""
        yield from self.ended()
        for number in list(self._open):
            if number in self._unsent or self._is_overdue(number):
                self._send(number)
            elif self._is_orphan(number):
                self._open[number] += 1
                _log.warning("rule_worker_lost", run_id=self._run_id, rule=number, tries=self._open[number])
                if self._open[number] >= _MAX_TRIES:
                    yield self._settle(number, _LOST)
                else:
                    _Files(self._folder, number).lock.unlink(missing_ok=True)
                    self._send(number)

    def _is_overdue(self, number: int) -> bool:
        """Say whether nobody has begun the rule for so long that its message may be lost.

        One message too many does no harm: the lock decides.
        """
        waited = time.monotonic() - self._sent[number]
        return waited > _MESSAGE_PATIENCE_SECONDS and not _Files(self._folder, number).lock.exists()

    def _is_orphan(self, number: int) -> bool:
        files = _Files(self._folder, number)
        # The status is written before the lock is given free: hence the order.
        return files.lock.exists() and self._is_free(number) and not files.status.exists()

    def _is_free(self, number: int) -> bool:
        """Say whether nobody holds the rule's lock; who never began does not."""
        try:
            descriptor = os.open(_Files(self._folder, number).lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def hang_up(self) -> None:
        """Begin no rule any more; those that run are killed by their workers. A repeat does nothing."""
        if self.bell_fd >= 0:
            os.close(self.bell_fd)
            self.bell_fd = -1
            (self._folder / _BELL).unlink(missing_ok=True)

    def wait_for_workers(self) -> bool:
        """Return whether no worker is at a rule any more; waits for it, but not for ever."""
        give_up = time.monotonic() + _HANG_UP_PATIENCE_SECONDS
        while not all(self._is_free(number) for number in self._open):
            if time.monotonic() > give_up:
                return False
            time.sleep(_STEP_SECONDS)
        return True


def _write_spec(path: Path, spec: BoxSpec) -> None:
    value = {
        "name": spec.name,
        "bundle": str(spec.bundle),
        "data": str(spec.data),
        "work": str(spec.work),
        "limits": spec.limits.model_dump(),
    }
    path.write_text(json.dumps(value))


def _read_spec(path: Path) -> BoxSpec:
    value = json.loads(path.read_bytes())
    return BoxSpec(
        name=value["name"],
        bundle=Path(value["bundle"]),
        data=Path(value["data"]),
        work=Path(value["work"]),
        limits=Limits.model_validate(value["limits"]),
    )


def run_rule(runs_dir: Path, sandbox: Sandbox, run_id: str, execution: int, number: int) -> None:
    """Run one rule's job, if it is still wanted and nobody else runs it.

    Args:
        runs_dir: the folder of all runs.
        sandbox: builds the rule's box.
        run_id: from the message, hence checked here.
        execution: likewise.
        number: the rule's number within the execution.
    """
    if not is_run_id(run_id) or execution < 1 or number < 1:
        _log.warning("rule_message_malformed")
        return
    files = _Files(runs_dir / run_id / f"{execution}.ctl", number)
    with contextlib.ExitStack() as stack:
        try:
            bell = os.open(files.folder / _BELL, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, bell)
            lock = os.open(files.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            command = files.command.read_text(encoding="utf-8")
        except OSError:
            # No runner (any more), or another worker has it.
            _log.info("rule_dropped", run_id=run_id, execution=execution, rule=number)
            return
        if files.status.exists() or _has_hung_up(bell):
            return
        status = _run(files, sandbox, command, bell)
        if status is not None:
            part = files.status.with_suffix(".part")
            part.write_text(str(status))
            part.replace(files.status)
    if status is not None:
        _ring(files)


def _has_hung_up(bell: int) -> bool:
    """Say whether the runner has closed the bell.

    Asked once more with the lock in hand: a runner that hung up either sees
    the lock, or is seen here.
    """
    poll = select.poll()
    poll.register(bell, 0)
    return bool(poll.poll(0))


def _ring(files: _Files) -> None:
    # Only now is the lock free: who hears the bell may remove the files.
    with contextlib.suppress(OSError):
        bell = os.open(files.folder / _BELL, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(bell, b".")
        finally:
            os.close(bell)


def _run(files: _Files, sandbox: Sandbox, command: str, bell: int) -> int | None:
    """Run the command; return its exit status, or None when the runner has gone."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(RunLog(files.log, _RULE_LOG_BYTES))
        spec = _read_spec(files.folder / _BOX)
        box = sandbox.join(spec)
        stack.callback(box.close)
        stack.callback(box.kill)
        read, write = os.pipe()
        stack.callback(os.close, read)
        try:
            program = box.start_command(command, write)
        except SandboxError as error:
            _log.warning("rule_not_started", name=spec.name, rule=files.number, error=str(error))
            return _NOT_STARTED
        finally:
            os.close(write)
        stack.callback(program.close)
        wanted = _follow(program.ended_fd, read, bell, log)
        box.kill()
        _drain(read, log)
        return program.exit_status() if wanted else None


def _follow(ended: int, output: int, bell: int, log: RunLog) -> bool:
    """Log the output until the program ends; return False as soon as the runner is gone."""
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(output, select.POLLIN)
    poll.register(bell, 0)  # its error condition is reported without asking
    while True:
        ready = dict(poll.poll())
        if bell in ready:
            return False
        if output in ready:
            data = os.read(output, _READ_BYTES)
            log.write(data)
            if not data:
                poll.unregister(output)
        elif ended in ready:
            return True


def _drain(output: int, log: RunLog) -> None:
    while data := os.read(output, _READ_BYTES):
        log.write(data)
