"""The worker program: takes messages off the node's queues and does what they say.

Two pools, so that runs cannot starve their own rules: one program for whole
runs, one for rules, and a supervisor above both where they share a host. No
program here opens the node's store, holds a key, or imports grpc.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import redis
import structlog
from celery import Celery
from celery.signals import setup_logging

from hansa.contract.errors import RunReason
from hansa.contract.ids import is_run_id
from hansa.runtime.backoff import delays
from hansa.runtime.clock import utc_now
from hansa.runtime.logging import set_up_logging
from node_agent.config import StateFolder, load_settings
from node_agent.execution.agent_client import (
    AgentAwayError,
    AgentClient,
    Claimed,
    Finish,
    Outcome,
    RefusedError,
    SupersededError,
)
from node_agent.execution.broker import broker_url
from node_agent.execution.bubblewrap import BubblewrapSandbox, this_machine
from node_agent.execution.celery_app import RULE_QUEUE, RULE_TASK, RUN_QUEUE, RUN_TASK, enqueue_rule, make_app
from node_agent.execution.heart import Heart
from node_agent.execution.rules import run_rule
from node_agent.execution.runner import Runner

_log = structlog.get_logger(__name__)

POOLS: Final = ("runs", "rules", "all")
_CLAIM_TRIES: Final = 20
_STOP_PATIENCE_SECONDS: Final = 10.0
_SUPERVISE_SECONDS: Final = 0.2
# A worker that lived this long did start: the next failure waits shortly again.
_SETTLED_SECONDS: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1


def run_worker(state_dir: Path, pool: str, slots: int) -> int:
    """Work until told to stop (SIGTERM, SIGINT); return the exit status.

    SIGTERM lets what runs finish. The supervisor waits ten seconds for that;
    what still runs then is killed with all of its processes, and the agent
    starts it again elsewhere.

    Args:
        state_dir: the node's state folder.
        pool: "runs", "rules", or "all" for a supervised one of each.
        slots: how many messages are worked on at once, per pool.

    Raises:
        HansaError: ``CONFIG_INVALID``; ``agent.toml`` cannot be read.
    """
    set_up_logging(f"worker-{pool}")
    state_dir = state_dir.absolute()
    if pool == "all":
        return _Supervisor(state_dir, slots).run()
    settings = load_settings(StateFolder(state_dir))
    url = broker_url(state_dir, settings.broker_url)
    _wait_for_broker(url)
    app = make_app(url)
    sandbox = BubblewrapSandbox(this_machine(node_name(state_dir)), warm=pool == "runs")
    try:
        if pool == "runs":
            sandbox.warm_up()
            _add_run_task(app, state_dir, sandbox)
        else:
            _add_rule_task(app, state_dir, sandbox)
        return _consume(app, RUN_QUEUE if pool == "runs" else RULE_QUEUE, slots)
    finally:
        sandbox.close()


def node_name(state_dir: Path) -> str:
    """Return the name under which the node's control groups stand on this host."""
    return hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:12]


def _wait_for_broker(url: str) -> None:
    """Wait until the agent's own broker answers: Celery would wait in steps of seconds."""
    if not url.startswith("redis+socket://"):
        return
    path = url.removeprefix("redis+socket://").partition("?")[0]
    for delay in delays(random.random, first=0.05, most=1.0):
        try:
            with redis.Redis(unix_socket_path=path, socket_timeout=2) as client:
                client.ping()
        except (redis.RedisError, OSError):
            time.sleep(delay)
        else:
            return


def _consume(app: Celery, queue: str, slots: int) -> int:
    # Root builds sandboxes, and nothing is unpickled: Celery's warning does not apply.
    warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")
    # Whoever takes this signal sets up the logs; that has been done.
    setup_logging.connect(_leave_logging, weak=False)
    worker = app.Worker(
        hostname=f"{queue}@{socket.gethostname()}-{os.getpid()}",
        queues=[queue],
        pool="threads",
        concurrency=slots,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _leave_logging(**_: Any) -> None:
    return


def _add_run_task(app: Celery, state_dir: Path, sandbox: BubblewrapSandbox) -> None:
    agent = AgentClient(StateFolder(state_dir).socket)
    runner = Runner(
        sandbox=sandbox,
        enqueue_rule=partial(enqueue_rule, app),
        clock=utc_now,
        draw_incident=draw_incident,
    )
    executor = RunExecutor(agent, runner, f"{socket.gethostname()}-{os.getpid()}")

    def run(run_id: str) -> None:
        executor.take(run_id)

    app.task(name=RUN_TASK)(run)


def _add_rule_task(app: Celery, state_dir: Path, sandbox: BubblewrapSandbox) -> None:
    runs = StateFolder(state_dir).runs

    def rule(run_id: str, execution: int, number: int) -> None:
        run_rule(runs, sandbox, run_id, execution, number)

    app.task(name=RULE_TASK)(rule)


def draw_incident() -> str:
    """Return a new incident number."""
    return secrets.token_hex(4).upper()


@dataclass(frozen=True, slots=True)
class RunExecutor:
    """What the ``hansa.run`` task does."""

    agent: AgentClient
    runner: Runner
    worker: str

    def take(self, run_id: str) -> None:
        """Claim ``run_id``, run it and report it; drop the message if the agent says so."""
        if not is_run_id(str(run_id)):
            _log.warning("run_message_malformed")
            return
        claimed = self._claim(run_id)
        if claimed is None:
            return
        with Heart(self.agent, claimed) as heart:
            report = self._run(claimed, heart)
            if report is not None:
                self._report(report)

    def _claim(self, run_id: str) -> Claimed | None:
        for _, delay in zip(range(_CLAIM_TRIES), delays(random.random), strict=False):
            try:
                return self.agent.claim(run_id, self.worker)
            except SupersededError:
                _log.info("run_message_dropped", run_id=run_id)
                return None
            except RefusedError as error:
                _log.warning("claim_refused", run_id=run_id, error=str(error))
                return None
            except AgentAwayError as error:
                _log.info("claim_unheard", run_id=run_id, error=str(error))
                time.sleep(delay)
        # The agent sends the message again when it is back.
        return None

    def _run(self, claimed: Claimed, heart: Heart) -> Finish | None:
        try:
            return self.runner.run(claimed, heart)
        except Exception:
            # The task's outermost edge: whatever it was, the agent must hear of an end.
            incident = self.runner.draw_incident()
            _log.exception("runner_crashed", run_id=claimed.run_id, incident=incident)
            return _failed(claimed.run_id, claimed.execution, RunReason.SANDBOX_FAILED, incident)

    def _report(self, report: Finish) -> None:
        """Report until the agent has heard it: a finished run must outlive a restart of the agent."""
        for delay in delays(random.random):
            try:
                self.agent.finish(report)
            except SupersededError:
                _log.info("report_too_late", run_id=report.run_id, execution=report.execution)
            except RefusedError as error:
                _log.error("report_refused", run_id=report.run_id, error=str(error))
                if report.outcome is Outcome.SUMMARY:
                    incident = self.runner.draw_incident()
                    report = _failed(report.run_id, report.execution, RunReason.SUMMARY_INVALID, incident)
                    continue
            except AgentAwayError as error:
                _log.info("report_unheard", run_id=report.run_id, error=str(error))
                time.sleep(delay)
                continue
            return


def _failed(run_id: str, execution: int, reason: RunReason, incident: str) -> Finish:
    return Finish(run_id=run_id, execution=execution, outcome=Outcome.FAILED, reason=reason, incident=incident)


class _Child:
    """One supervised worker program."""

    def __init__(self, words: Sequence[str], pool: str) -> None:
        self._words, self.pool = words, pool
        self._delays = self._fresh()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._next_start = 0.0

    def _fresh(self) -> Iterator[float]:
        return delays(random.random, first=0.2, most=10.0)

    def tend(self, now: float) -> None:
        """Start it if it does not run and its delay is over."""
        if self._process is not None:
            status = self._process.poll()
            if status is None:
                return
            self._process = None
            if now - self._started > _SETTLED_SECONDS:
                self._delays = self._fresh()
            self._next_start = now + next(self._delays)
            _log.warning("worker_died", pool=self.pool, status=status)
        if now >= self._next_start:
            self._process = subprocess.Popen(self._words, stdin=subprocess.DEVNULL)
            self._started = now
            _log.info("worker_started", pool=self.pool, pid=self._process.pid)

    def stop(self, give_up: float) -> None:
        """Wait for it, which was told to stop, until ``give_up``; then kill it."""
        if self._process is None:
            return
        try:
            self._process.wait(max(give_up - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def terminate(self) -> None:
        """Tell it to stop."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()


class _Supervisor:
    """Keeps one program per pool alive."""

    def __init__(self, state_dir: Path, slots: int) -> None:
        program = [sys.executable, "-m", "node_agent.execution.worker"]
        self._children = [
            _Child([*program, str(state_dir), pool, str(slots), str(os.getpid())], pool) for pool in ("runs", "rules")
        ]
        self._stop = threading.Event()

    def run(self) -> int:
        """Supervise until a signal comes."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        while not self._stop.is_set():
            for child in self._children:
                child.tend(time.monotonic())
            self._stop.wait(_SUPERVISE_SECONDS)
        for child in self._children:
            child.terminate()
        give_up = time.monotonic() + _STOP_PATIENCE_SECONDS
        for child in self._children:
            child.stop(give_up)
        _log.info("workers_stopped")
        return 0

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()


def _die_with(parent: int) -> None:
    """End with the supervisor, however that ends."""
    libc: Any = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def _main(argv: Sequence[str]) -> int:
    state_dir, pool, slots, parent = argv
    _die_with(int(parent))
    return run_worker(Path(state_dir), pool, int(slots))


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
