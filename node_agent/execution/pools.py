"""What the two pools of workers do: take messages off a queue and do what they say.

Celery runs with threads: a task here waits for a sandbox, it computes nothing,
and no process that holds connections is ever forked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import socket
import time
import warnings
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import redis
import structlog
from celery import Celery
from celery.signals import setup_logging, worker_shutting_down

from hansa.contract.errors import RunReason
from hansa.contract.ids import is_run_id
from hansa.runtime.backoff import delays
from hansa.runtime.clock import utc_now
from hansa.runtime.logging import about
from hansa.runtime.stopping import cut_short_after
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
from node_agent.execution.deliveries import forget_what_redis_did_not_hear
from node_agent.execution.heart import Heart
from node_agent.execution.presence import draw_worker_name, held_card, held_ticket, node_name
from node_agent.execution.rules import run_rule
from node_agent.execution.runner import Runner

_log = structlog.get_logger(__name__)

_CLAIM_TRIES: Final = 20


def serve_pool(state_dir: Path, pool: str, slots: int) -> int:
    """Serve one pool, "runs" or "rules", until told to stop; return the exit status.

    Raises:
        HansaError: ``CONFIG_INVALID``; ``agent.toml`` cannot be read.
    """
    state = StateFolder(state_dir)
    settings = load_settings(state)
    url = broker_url(state_dir, settings.broker_url)
    _wait_for_broker(url)
    app = make_app(url)
    machine = this_machine(node_name(state_dir))
    sandbox = BubblewrapSandbox(machine, warm=pool == "runs")
    with contextlib.ExitStack() as stack:
        stack.callback(sandbox.close)
        if pool == "runs":
            worker = draw_worker_name()
            stack.enter_context(held_card(state.workers, worker, machine.node, machine.groups))
            sandbox.warm_up()
            _add_run_task(app, state, sandbox, worker)
        else:
            _add_rule_task(app, state_dir, sandbox)
        # Celery waits for what runs, however long that takes.
        patience = timedelta(seconds=settings.worker_stop_seconds)
        worker_shutting_down.connect(lambda **_: cut_short_after(patience, f"worker-{pool}"), weak=False)
        return _consume(app, RUN_QUEUE if pool == "runs" else RULE_QUEUE, slots)


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
    for chatty in ("httpx", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Whoever takes this signal sets up the logs; that has been done.
    setup_logging.connect(_leave_logging, weak=False)
    forget_what_redis_did_not_hear()
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


def _add_run_task(app: Celery, state: StateFolder, sandbox: BubblewrapSandbox, worker: str) -> None:
    agent = AgentClient(state.socket)
    runner = Runner(
        sandbox=sandbox,
        enqueue_rule=partial(enqueue_rule, app),
        clock=utc_now,
        draw_incident=draw_incident,
    )
    executor = RunExecutor(agent=agent, runner=runner, worker=worker, tickets=state.workers)

    def run(run_id: str) -> None:
        executor.take(run_id)

    app.task(name=RUN_TASK)(run)


def _add_rule_task(app: Celery, state_dir: Path, sandbox: BubblewrapSandbox) -> None:
    runs = StateFolder(state_dir).runs

    def rule(run_id: str, execution: int, number: int) -> None:
        # From the message: only ids and numbers get into the log.
        names: dict[str, str | int] = (
            {"run_id": run_id, "execution": execution, "rule": number} if is_run_id(str(run_id)) else {}
        )
        with about(**names):
            run_rule(runs, sandbox, run_id, execution, number)

    app.task(name=RULE_TASK)(rule)


def draw_incident() -> str:
    """Return a new incident number."""
    return secrets.token_hex(4).upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunExecutor:
    """What the ``hansa.run`` task does; it holds a ticket in the folder ``tickets`` as long as it is at a run."""

    agent: AgentClient
    runner: Runner
    worker: str
    tickets: Path

    def take(self, run_id: str) -> None:
        """Claim ``run_id``, run it and report it; drop the message if the agent says so."""
        if not is_run_id(str(run_id)):
            _log.warning("run_message_malformed")
            return
        token = secrets.token_hex(16)
        with about(run_id=run_id), held_ticket(self.tickets, token):
            claimed = self._claim(run_id, token)
            if claimed is not None:
                self._execute(claimed)

    def _execute(self, claimed: Claimed) -> None:
        with about(job_id=claimed.job_id, execution=claimed.execution), Heart(self.agent, claimed) as heart:
            report = self._run(claimed, heart)
            if report is not None:
                self._report(report)

    def _claim(self, run_id: str, token: str) -> Claimed | None:
        for _, delay in zip(range(_CLAIM_TRIES), delays(random.random), strict=False):
            try:
                return self.agent.claim(run_id, self.worker, token)
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
            return Finish(
                run_id=claimed.run_id,
                execution=claimed.execution,
                outcome=Outcome.LOST,
                reason=RunReason.SANDBOX_FAILED,
                incident=incident,
            )

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
