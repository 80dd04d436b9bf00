"""Moves accepted runs onto the cluster, and mends what the cluster loses.

The broker is a courier without a memory: the store says which run is to be
started, and a message that got lost is simply sent again. What a message finds
is decided when a worker claims the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError
from hansa.contract.states import RUN_TERMINAL, RunEvent, RunState
from hansa.runtime.clock import Clock
from node_agent.offers import active_runs
from node_agent.policy.policy import Policy
from node_agent.reporting import Bells, Reporter, advance
from node_agent.run_facts import facts_of
from node_agent.run_rules import BEAT_PATIENCE, STARTED, due, is_message_lost, is_silent, next_to_start
from node_agent.store.database import Database
from node_agent.store.models import RunRow
from node_agent.store.outbox import is_reconciled

_log = structlog.get_logger(__name__)

# Steps further apart: it was us who slept (or the clock that jumped), not the workers.
_BACK_TO_BACK: Final = BEAT_PATIENCE / 3
_TICK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """The agent's loop over its runs.

    ``enqueue`` sends a run id to the broker (blocking); ``may_start`` says
    whether there is room for a run that has not begun.
    """

    database: Database
    policy: Callable[[], Policy]
    reporter: Reporter
    bells: Bells
    clock: Clock
    enqueue: Callable[[str], None]
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
        changed = await self.database.run(lambda session: self._mend(session, now))
        started = await self.database.run(lambda session: self._start(session, now))
        if changed or started:
            self.bells.events.set()
        for number, run_id in enumerate(started):
            try:
                await asyncio.to_thread(self.enqueue, run_id)
            except Exception:
                # The broker is away, also for the others; the runs stay STAGING and are sent again.
                _log.exception("enqueue_failed", run_id=run_id)
                unsent = started[number:]
                await self.database.run(lambda session: _forget_messages(session, unsent))  # noqa: B023
                return

    def _start(self, session: Session, now: datetime) -> Sequence[str]:
        """Return the runs whose message is to be sent, new ones and lost ones."""
        if not is_reconciled(session):
            # Restored from a backup: what is queued here may have ended long ago.
            return ()
        most = self.policy().admission.max_active_runs if self.may_start() else 0
        room = most - active_runs(session)
        queued = {run.run_id: run for run in _in_states(session, (RunState.QUEUED,))}
        lost = [run for run in _in_states(session, (RunState.STAGING,)) if is_message_lost(facts_of(run), now)]
        started = next_to_start([facts_of(run) for run in queued.values()], room)
        for run_id in started:
            run = queued[run_id]
            run.execution += 1
            run.enqueued_at, run.beat_at, run.worker = now, None, ""
            advance(session, run, RunEvent.STAGE, reporter=self.reporter, now=now)
        for run in lost:
            run.enqueued_at = now
        return [*started, *(run.run_id for run in lost)]

    def _mend(self, session: Session, now: datetime) -> int:
        """Expire runs past their deadline, re-queue those whose worker is silent."""
        open_ = _in_states(session, frozenset(RunState) - RUN_TERMINAL)
        return sum(self._mend_one(session, run, now) for run in open_)

    def _mend_one(self, session: Session, run: RunRow, now: datetime) -> bool:
        facts = facts_of(run)
        what = due(facts, now)
        if what is None:
            return False
        if is_silent(facts, now):
            _log.warning("worker_silent", run_id=run.run_id, execution=run.execution)
        advance(session, run, what.event, reporter=self.reporter, now=now, reason=what.reason or "")
        return True

    def _pardon(self, session: Session) -> None:
        """Start every lease anew: while the agent was not there, no worker could beat."""
        now = self.clock()
        for run in _in_states(session, STARTED):
            run.beat_at = now


def _in_states(session: Session, states: Collection[RunState]) -> Sequence[RunRow]:
    return session.scalars(select(RunRow).where(RunRow.state.in_([state.value for state in states]))).all()


def _forget_messages(session: Session, run_ids: Sequence[str]) -> None:
    for run in session.scalars(select(RunRow).where(RunRow.run_id.in_(run_ids))):
        run.enqueued_at = None
