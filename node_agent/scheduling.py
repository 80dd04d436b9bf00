"""Moves accepted runs onto the cluster, and mends what the cluster loses.

The broker is a courier without a memory: the store says which run is to be
started, and a message that got lost is simply sent again. What a message finds
is decided when a worker claims the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import or_, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from hansa.contract.errors import RunReason
from hansa.contract.states import RUN_TERMINAL, RunEvent, RunState
from hansa.runtime.clock import Clock
from node_agent.offers import active_runs
from node_agent.policy.policy import Policy
from node_agent.reporting import Bells, Reporter, advance
from node_agent.store.database import Database
from node_agent.store.models import RunRow

_log = structlog.get_logger(__name__)

MESSAGE_PATIENCE: Final = timedelta(seconds=10)
BEAT_PATIENCE: Final = timedelta(seconds=15)
MAX_EXECUTIONS: Final = 3
# Steps further apart: it was us who slept (or the clock that jumped), not the workers.
_BACK_TO_BACK: Final = BEAT_PATIENCE / 3
_TICK_SECONDS: Final = 1.0
_STARTED: Final = (RunState.RUNNING.value, RunState.CANCELLING.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """The agent's loop over its runs. ``enqueue`` sends a run id to the broker (blocking)."""

    database: Database
    policy: Callable[[], Policy]
    reporter: Reporter
    bells: Bells
    clock: Clock
    enqueue: Callable[[str], None]

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
        except OperationalError:
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
        room = self.policy().admission.max_active_runs - active_runs(session)
        queued = session.scalars(
            select(RunRow).where(RunRow.state == RunState.QUEUED).order_by(RunRow.created_at).limit(max(room, 0))
        ).all()
        for run in queued:
            run.execution += 1
            run.enqueued_at, run.beat_at, run.worker = now, None, ""
            advance(session, run, RunEvent.STAGE, reporter=self.reporter, now=now)
        lost = session.scalars(
            select(RunRow).where(
                RunRow.state == RunState.STAGING,
                or_(RunRow.enqueued_at.is_(None), RunRow.enqueued_at < now - MESSAGE_PATIENCE),
            )
        ).all()
        for run in lost:
            run.enqueued_at = now
        return [run.run_id for run in (*queued, *lost)]

    def _mend(self, session: Session, now: datetime) -> int:
        """Expire runs past their deadline, re-queue those whose worker is silent."""
        open_ = session.scalars(
            select(RunRow).where(RunRow.state.not_in([state.value for state in RUN_TERMINAL]))
        ).all()
        return sum(self._mend_one(session, run, now) for run in open_)

    def _mend_one(self, session: Session, run: RunRow, now: datetime) -> bool:
        if run.not_after <= now:
            self._advance(session, run, RunEvent.EXPIRE, now, RunReason.DEADLINE_PASSED)
            return True
        silent = run.beat_at is not None and run.beat_at < now - BEAT_PATIENCE
        if run.state not in _STARTED or not silent:
            return False
        _log.warning("worker_silent", job_id=run.job_id, run_id=run.run_id, execution=run.execution)
        if run.state == RunState.CANCELLING:
            self._advance(session, run, RunEvent.CONFIRM_CANCELLED, now, RunReason.CANCELLED)
        elif run.execution >= MAX_EXECUTIONS:
            self._advance(session, run, RunEvent.FAIL, now, RunReason.RUN_LOST)
        else:
            self._advance(session, run, RunEvent.LOSE_LEASE, now)
        return True

    def _advance(
        self, session: Session, run: RunRow, event: RunEvent, now: datetime, reason: RunReason | None = None
    ) -> None:
        advance(session, run, event, reporter=self.reporter, now=now, reason=reason or "")

    def _pardon(self, session: Session) -> None:
        """Start every lease anew: while the agent was not there, no worker could beat."""
        now = self.clock()
        for run in session.scalars(select(RunRow).where(RunRow.state.in_(_STARTED))):
            run.beat_at = now


def _forget_messages(session: Session, run_ids: Sequence[str]) -> None:
    for run in session.scalars(select(RunRow).where(RunRow.run_id.in_(run_ids))):
        run.enqueued_at = None
