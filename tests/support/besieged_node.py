"""A whole node whose coordinator is evil, and the count of what it could be made to do.

The agent is the real one from its composition root: store, link, trust,
admission, scheduler, airlock, audit log, local API. Only the execution is a
double (``worker_double``), and the waits between two sessions are zero.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session as Transaction

from hansa.contract.states import RunState
from hansa.runtime.clock import Clock
from node_agent import bootstrap
from node_agent.audit.entries import Action
from node_agent.audit.log import leaves, size_of
from node_agent.bootstrap import Agent
from node_agent.config import AgentConfig, StateFolder
from node_agent.local_api.client import AgentClient
from node_agent.policy.book import PolicyBook
from node_agent.scheduling import RunQueue
from node_agent.store.database import Database
from node_agent.store.models import RunRow, SummaryRow
from tests.support.evil_coordinator import PATIENCE, EvilCoordinator
from tests.support.live_coordinator import ShiftedClock
from tests.support.worker_double import Executed, WorkerDouble

_MOVING = (RunState.OFFERED, RunState.ACCEPTED, RunState.QUEUED, RunState.STAGING, RunState.RUNNING, RunState.CHECKING)


class Outcome(StrEnum):
    """The three ends that a mutant may have."""

    REFUSED = "refused, with a reason in the log"
    IGNORED = "harmlessly ignored"
    HONEST = "the honest job's release"


@dataclass(frozen=True, slots=True)
class Honest:
    """A job as its researcher signed it, with what its run must be."""

    run_id: str
    payload: bytes
    what: tuple[object, ...]


@dataclass
class Seen:
    """How much of everything there was at a moment."""

    executed: int
    uploads: int
    leaves: int
    logs: int
    runs: int


@dataclass
class BesiegedNode:
    """The node under attack; ``honest`` knows by run id each job that may run, once."""

    state: StateFolder
    config: AgentConfig
    evil: EvilCoordinator
    database: Database
    worker: WorkerDouble
    # The node's clock; TLS keeps to the true time.
    clock: ShiftedClock = field(default_factory=ShiftedClock)
    released: bytes = b""
    honest: dict[str, Honest] = field(default_factory=dict)
    logs: list[Any] = field(default_factory=list)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the agent, as its process would, until the context ends."""
        stop = asyncio.Event()
        with _no_waits(self.clock), structlog.testing.capture_logs() as self.logs:
            queue = RunQueue(self.worker)
            agent = Agent(self.state, self.config, PolicyBook(self.state.policy_file), self.database, queue)
            self.evil.explain = lambda: self.logs[-6:]
            task = asyncio.create_task(agent.run(stop))
            try:
                yield
            finally:
                stop.set()
                await asyncio.wait_for(task, PATIENCE)
                await self.evil.left()
                self.worker.close()

    async def attempt(self, name: str, act: Callable[[], Awaitable[object]]) -> Outcome:
        """Do ``act``, wait until nothing moves any more, and return what came of it.

        What must never happen is noted in ``broken`` under ``name``.
        """
        before = await self.seen()
        try:
            await act()
            await self.settled()
        except TimeoutError:
            raise AssertionError(f"{name} does not end: {self.worker.troubles} {self.logs[-6:]}") from None
        outcome = await self._judge(name, before)
        self.outcomes[outcome] += 1
        return outcome

    async def until(self, true: Callable[[], bool]) -> None:
        """Return once something is true of what this process can see."""
        async with asyncio.timeout(PATIENCE):
            while not true():  # noqa: ASYNC110 - of whatever the test looks at
                await asyncio.sleep(0.002)

    def trusted(self) -> int:
        """Return the version of the directory that the node has put in force."""
        return max((entry["directory"] for entry in self.logs if entry["event"] == "trust_in_force"), default=0)

    def refreshes(self) -> int:
        """Return how often the node has looked at the repository and came to an end."""
        return sum(entry["event"] in ("trust_in_force", "trust_not_refreshed", "trust_current") for entry in self.logs)

    def count(self, event: str) -> int:
        """Return how often the agent has logged ``event``."""
        return sum(entry["event"] == event for entry in self.logs)

    async def local(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call the agent's local API as the node's own commands do."""
        call = getattr(AgentClient(self.state), method)
        return await asyncio.to_thread(call, *arguments, **named)

    async def seen(self) -> Seen:
        """Return how much of everything there is now."""

        def read(session: Transaction) -> tuple[int, int]:
            return size_of(session), session.scalar(select(func.count()).select_from(RunRow)) or 0

        size, runs = await self.database.run(read)
        return Seen(len(self.worker.executed), len(self.evil.uploads), size, len(self.logs), runs)

    async def settled(self) -> None:
        """Return when no run moves, each event is with the coordinator, and each released summary is."""
        async with asyncio.timeout(PATIENCE):
            while not await self._is_settled():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def _is_settled(self) -> bool:
        def read(session: Transaction) -> bool:
            moving = select(RunRow.run_id).where(RunRow.state.in_([state.value for state in _MOVING])).limit(1)
            unsent = select(SummaryRow.run_id).where(SummaryRow.decision == "RELEASE", SummaryRow.uploaded_at.is_(None))
            return session.scalar(moving) is None and session.scalar(unsent.limit(1)) is None

        return await self.database.run(read)

    async def _judge(self, name: str, before: Seen) -> Outcome:
        executed = self.worker.executed[before.executed :]
        uploads = self.evil.uploads[before.uploads :]
        for run in executed:
            self._note(name, self._execution_fault(run) or await self._other_bytes(run.run_id))
        for upload in uploads:
            good = upload.header.run_id in self.honest and upload.content == (self.released or upload.content)
            self._note(name, "" if good else f"another release: {upload.header.run_id}")
        if executed or uploads:
            return Outcome.HONEST
        reasons = await self._refusals(before)
        self.reasons.update(reasons)
        return Outcome.REFUSED if reasons else Outcome.IGNORED

    def _execution_fault(self, run: Executed) -> str:
        expected = self.honest.get(run.run_id)
        if expected is None:
            return f"executed a run of no honest job: {run}"
        if [other.run_id for other in self.worker.executed].count(run.run_id) > 1:
            return f"executed twice: {run.run_id}"
        return "" if run.what == expected.what else f"executed something else: {run.what}, not {expected.what}"

    async def _other_bytes(self, run_id: str) -> str:
        """Return what is wrong where the node ran a job whose bytes its researcher did not sign."""
        stored = await self.database.run(lambda session: session.get_one(RunRow, run_id).payload)
        return "" if stored == self.honest[run_id].payload else f"executed other bytes: {run_id}"

    def _note(self, name: str, fault: str) -> None:
        if fault:
            self.broken.append(f"{name}: {fault}")

    async def _refusals(self, before: Seen) -> list[str]:
        """Return the reasons that the audit log has gained."""
        found = await self.entries(before.leaves)
        return [str(entry["facts"]["reason"]) for entry in found if "reason" in entry.get("facts", {})]

    async def entries(self, start: int = 0) -> list[dict[str, Any]]:
        """Return the entries of the audit log from ``start`` on."""

        def read(session: Transaction) -> list[dict[str, Any]]:
            return [json.loads(leaf.body) for leaf in leaves(session, start, size_of(session))]

        return await self.database.run(read)

    async def assert_unbroken(self) -> None:
        """Compare the node's own books with what the worker and the coordinator saw."""
        assert not self.broken, "\n".join(self.broken[:20])
        entries = await self.entries()
        started = [entry["facts"]["run"] for entry in entries if entry["action"] == Action.EXECUTION_STARTED]
        released = [entry["facts"]["run"] for entry in entries if entry["action"] == Action.SUMMARY_RELEASED]
        assert sorted(started) == sorted(run.run_id for run in self.worker.executed)
        assert len(set(started)) == len(started)
        assert set(started) <= set(self.honest)
        assert sorted(released) == sorted(started)
        assert {upload.header.run_id for upload in self.evil.uploads} == set(released)
        assert len({upload.content for upload in self.evil.uploads} | ({self.released} - {b""})) <= 1


@contextmanager
def _no_waits(clock: Clock) -> Iterator[None]:
    """Let the link come back at once (its jitter draws the lowest number there is), and the agent use ``clock``."""
    jitter = SimpleNamespace(random=lambda: -1.0)
    with patch.object(bootstrap, "random", jitter), patch.object(bootstrap, "utc_now", clock):
        yield
