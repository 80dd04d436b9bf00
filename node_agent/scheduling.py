"""Moves accepted runs onto the cluster, and mends what the cluster loses.

The broker is a courier without a memory: the store says which run is to be
started, and a message that got lost is simply sent again. What a message finds
is decided when a worker claims the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

import structlog
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError
from hansa.contract.states import RunEvent, RunState
from hansa.runtime.clock import Clock
from node_agent.offers import active_runs
from node_agent.policy.policy import Policy
from node_agent.reporting import Bells, Reporter, advance
from node_agent.run_facts import facts_of, in_states, oldest_queued, past_deadline, shares
from node_agent.run_rules import (
    BEAT_PATIENCE,
    LOOK_PATIENCE,
    STARTED,
    RunFacts,
    Seen,
    WorkerSign,
    due,
    is_forsaken,
    is_message_lost,
    lost_messages,
    next_to_start,
)
from node_agent.store.database import Database
from node_agent.store.models import RunRow
from node_agent.store.outbox import is_reconciled

_log = structlog.get_logger(__name__)

# Steps further apart: it was us who slept (or the clock that jumped), not the workers.
_BACK_TO_BACK: Final = BEAT_PATIENCE / 3
_TICK_SECONDS: Final = 1.0
_AT_WORK: Final = Seen(worker=WorkerSign.ALIVE, empty=False)


@dataclass(frozen=True, slots=True)
class RunQueue:
    """The broker's queue of runs. Both calls block.

    ``enqueue`` sends a run's id; ``depth`` tells how many messages wait, None
    if that cannot be told.
    """

    enqueue: Callable[[str], None]
    depth: Callable[[], int | None] = lambda: None


class Presence(Protocol):
    """What the scheduler asks about this host. Both calls block."""

    def signs(self, runs: Sequence[RunFacts]) -> Mapping[tuple[str, int], WorkerSign]:
        """Return of each running execution (run id, number) whether its worker is still at it."""

    def clear(self, run: RunFacts) -> bool:
        """Kill what is left of a running execution; return whether it is proven that nothing of it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """The agent's loop over its runs; while not ``may_start``, a run that has not begun waits."""

    database: Database
    policy: Callable[[], Policy]
    reporter: Reporter
    bells: Bells
    clock: Clock
    queue: RunQueue
    premises: Presence
    may_start: Callable[[], bool] = lambda: True

    async def run(self) -> None:
        """Start what may start, mend what is stuck; once a second and whenever the bell rings."""
        last = None
        while True:
            self.bells.queue.clear()
            last = await self._tick(last)
            try:
                async with asyncio.timeout(_TICK_SECONDS):
                    await self.bells.queue.wait()
            except TimeoutError:
                continue

    async def _tick(self, last: datetime | None) -> datetime | None:
        """Take a step; return when it was, None if the store could not write.

        Args:
            last: when the step before was, None if there was none.
        """
        now = self.clock()
        try:
            if last is None or not _BACK_TO_BACK > now - last > -_BACK_TO_BACK:
                await self.database.run(self._pardon)
            # At one time with the question before: the machine may sleep in between.
            await self.step(now)
        except (OperationalError, HansaError):
            # A full disk, say. The agent must be there when it is mended; nothing was half done.
            _log.exception("store_not_writable")
            return None
        return now

    async def step(self, at: datetime | None = None) -> None:
        """Do what is due ``at`` a time; now, if none is given."""
        now = at or self.clock()
        seen = await self._look(now)
        changed = await self.database.run(lambda session: self._mend(session, now, seen))
        depth = await self._depth(now)
        started = await self.database.run(lambda session: self._start(session, now, depth))
        if changed or started:
            self.bells.events.set()
        for number, run_id in enumerate(started):
            try:
                await asyncio.to_thread(self.queue.enqueue, run_id)
            except Exception:
                # The broker is away, also for the others; the runs stay STAGING and are sent again.
                _log.exception("enqueue_failed", run_id=run_id)
                unsent = started[number:]
                await self.database.run(lambda session: _forget_messages(session, unsent))  # noqa: B023
                return

    async def _depth(self, now: datetime) -> int | None:
        """Return how many messages the broker holds, where one of them should have been taken by now."""
        staging = await self.database.run(lambda session: _facts(session, (RunState.STAGING,)))
        if not any(is_message_lost(run, now, LOOK_PATIENCE) for run in staging):
            return len(staging)
        return await asyncio.to_thread(self.queue.depth)

    def _start(self, session: Session, now: datetime, depth: int | None) -> Sequence[str]:
        """Return the runs whose message is to be sent, new ones and lost ones."""
        if not is_reconciled(session):
            # Restored from a backup: what is queued here may have ended long ago.
            return ()
        lost = lost_messages(_facts(session, (RunState.STAGING,)), depth, now)
        most = self.policy().admission.max_active_runs if self.may_start() else 0
        room = most - active_runs(session)
        started = next_to_start(oldest_queued(session, room), room, shares(session))
        for run_id in started:
            run = session.get_one(RunRow, run_id)
            run.execution += 1
            run.beat_at, run.worker, run.claim = None, "", ""
            advance(session, run, RunEvent.STAGE, reporter=self.reporter, now=now)
        for run_id in (*started, *lost):
            session.get_one(RunRow, run_id).enqueued_at = now
        return [*started, *lost]

    async def _look(self, now: datetime) -> Mapping[tuple[str, int], Seen]:
        """Look after the workers of all running executions; end what is left of those that nobody looks after."""
        runs = await self.database.run(lambda session: _facts(session, STARTED))
        signs = await asyncio.to_thread(self.premises.signs, runs) if runs else {}
        seen = {}
        for run in runs:
            sign = signs[run.run_id, run.execution]
            if is_forsaken(run, now, sign):
                _log.warning("worker_lost", run_id=run.run_id, execution=run.execution, worker=sign.value)
                empty = await asyncio.to_thread(self.premises.clear, run)
                seen[run.run_id, run.execution] = Seen(worker=sign, empty=empty)
        return seen

    def _mend(self, session: Session, now: datetime, seen: Mapping[tuple[str, int], Seen]) -> int:
        """Expire runs past their deadline, re-queue those whose worker is gone and nothing of whom runs any more."""
        runs = {run.run_id: run for run in (*past_deadline(session, now), *in_states(session, STARTED))}
        return sum(self._mend_one(session, run, now, seen) for run in runs.values())

    def _mend_one(self, session: Session, run: RunRow, now: datetime, seen: Mapping[tuple[str, int], Seen]) -> bool:
        # What was not looked at had a worker then: it is not given up unseen.
        what = due(facts_of(run), now, seen.get((run.run_id, run.execution), _AT_WORK))
        if what is None:
            return False
        advance(session, run, what.event, reporter=self.reporter, now=now, reason=what.reason or "")
        return True

    def _pardon(self, session: Session) -> None:
        """Start every lease anew: while the agent was not there, no worker could beat."""
        now = self.clock()
        for run in in_states(session, STARTED):
            run.beat_at = now


def _facts(session: Session, states: Collection[RunState]) -> Sequence[RunFacts]:
    return [facts_of(run) for run in in_states(session, states)]


def _forget_messages(session: Session, run_ids: Sequence[str]) -> None:
    for run in session.scalars(select(RunRow).where(RunRow.run_id.in_(run_ids))):
        run.enqueued_at = None
