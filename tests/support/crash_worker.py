"""A worker in this process: the real calls to the agent and the real executor, around a runner that computes nothing."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

from hansa.contract.errors import RunReason
from node_agent.config import StateFolder
from node_agent.execution.agent_client import AgentAwayError, AgentClient, Claimed, Finish, Outcome
from node_agent.execution.heart import Heart
from node_agent.execution.pools import RunExecutor
from node_agent.execution.runner import Runner

_SLOTS = 4


class WorkerDied(BaseException):
    """Takes a worker's thread down, as a kill takes its process."""


class CrashingAgentClient(AgentClient):
    """The worker's calls to the agent; the worker may die before any is sent, and before any answer is heard."""

    def __init__(self, socket: Path, strikes: Callable[[str], bool]) -> None:
        """Take the agent's socket, and what says where to die."""
        super().__init__(socket)
        self._strikes = strikes
        self.is_dead = threading.Event()

    def claim(self, run_id: str, worker: str, token: str) -> Claimed:
        self._maybe("claim-unsent")
        claimed = super().claim(run_id, worker, token)
        self._maybe("claim-unheard")
        return claimed

    def beat(self, run_id: str, execution: int) -> bool:
        # In a thread of its own: the runner is told, and ends the worker.
        if self.is_dead.is_set() or self._strikes("beat-unsent"):
            self.is_dead.set()
            raise AgentAwayError("the worker is dead")
        wanted = super().beat(run_id, execution)
        if self._strikes("beat-unheard"):
            self.is_dead.set()
            raise AgentAwayError("the worker is dead")
        return wanted

    def finish(self, report: Finish) -> None:
        self._maybe("finish-unsent")
        super().finish(report)
        self._maybe("finish-unheard")

    def _maybe(self, point: str) -> None:
        if self._strikes(point):
            raise WorkerDied(point)


class DoubleRunner:
    """Stands in for sandbox and Snakemake: ends with one fixed summary, at once or when it is let go."""

    def __init__(self, summary: str, is_dead: Callable[[], bool]) -> None:
        self.summary, self._is_dead = summary, is_dead
        self.go = threading.Event()
        self.go.set()

    def run(self, claimed: Claimed, heart: Heart) -> Finish | None:
        """Return the summary, once it is let go; or what the agent wants instead."""
        while not self.go.is_set() and not heart.wants_end:
            select.select([heart.news_fd], [], [], 0.01)
            if self._is_dead():
                raise WorkerDied("beat")
        if heart.superseded:
            return None
        report = partial(Finish, run_id=claimed.run_id, execution=claimed.execution)
        if heart.cancelled:
            return report(outcome=Outcome.CANCELLED, reason=RunReason.CANCELLED)
        return report(outcome=Outcome.SUMMARY, summary=self.summary)

    def draw_incident(self) -> str:
        return "CAFE0001"


@dataclass
class CrashWorker:
    """The node's worker: give ``enqueue`` to the agent as its broker."""

    socket: Path
    summary: str
    # Where the worker dies next; and how often it did.
    armed: str = ""
    deaths: int = 0
    # Messages that the broker does not take; and whether those that it takes reach nobody.
    lost_messages: int = 0
    is_deaf: bool = False
    runner: DoubleRunner = field(init=False)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_SLOTS, thread_name_prefix="worker"))
    _busy: set[Future[None]] = field(default_factory=set)
    _client: CrashingAgentClient | None = None

    def __post_init__(self) -> None:
        self.runner = DoubleRunner(self.summary, lambda: self._client is not None and self._client.is_dead.is_set())

    @property
    def is_busy(self) -> bool:
        """Whether a run is with the worker."""
        return any(not one.done() for one in self._busy)

    def enqueue(self, run_id: str) -> None:
        """Take a message, as the broker does; or be away."""
        if self.lost_messages:
            self.lost_messages -= 1
            raise ConnectionError("the broker is away")
        if self.is_deaf:
            return
        client = self._client = self._client or CrashingAgentClient(self.socket, self._strikes)
        executor = RunExecutor(
            agent=client,
            runner=cast("Runner", self.runner),
            worker="worker-double",
            tickets=StateFolder(self.socket.parent).workers,
        )
        done = self._pool.submit(self._take, executor, run_id)
        self._busy = {one for one in self._busy if not one.done()} | {done}

    def _take(self, executor: RunExecutor, run_id: str) -> None:
        try:
            executor.take(run_id)
        except WorkerDied:
            self.deaths += 1
            if self._client is not None:
                # The next one that is started in its place.
                self._client.is_dead.clear()

    def _strikes(self, point: str) -> bool:
        if point != self.armed:
            return False
        self.armed = ""
        return True

    def close(self) -> None:
        """Let go of everything."""
        self.runner.go.set()
        self._pool.shutdown(wait=True)
        if self._client is not None:
            self._client.close()
