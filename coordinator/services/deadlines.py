"""The clock's part in jobs: deadlines, and nodes that stay away.

The loop sleeps until the next moment at which time alone changes a job, or
until a commit says that there may be an earlier one.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog
from sqlalchemy.orm import Session

from coordinator.services.desk import Changed, Desk, earliest
from coordinator.services.evaluation import settle
from coordinator.store.jobs import JobRepository
from coordinator.store.sessions import SessionRepository
from hansa.contract.limits import SESSION_SILENCE

_log = structlog.get_logger(__name__)

# We sleep by the monotonic clock, and deadlines are of the other one: when that is set
# forward, a deadline may have passed that seemed far away.
_LONGEST: Final = timedelta(seconds=5)
_SHORTEST: Final = timedelta(seconds=1)


def due_jobs(session: Session, *, since: datetime | None, now: datetime) -> list[str]:
    """Return the ids of the jobs that time alone may have changed.

    Args:
        session: the transaction.
        since: when this was asked last; None: every job that has not ended.
        now: the time.
    """
    jobs, nodes = JobRepository(session), SessionRepository(session)
    if since is None:
        return jobs.open_jobs()
    gone = nodes.gone_between(since - SESSION_SILENCE, now - SESSION_SILENCE)
    return sorted({*jobs.overdue(now), *jobs.open_jobs_of(gone)})


def next_due(session: Session, now: datetime) -> datetime | None:
    """Return the first moment after ``now`` at which time alone may change a job."""
    away = SessionRepository(session).first_gone_after(now - SESSION_SILENCE)
    return earliest(JobRepository(session).next_deadline(), away + SESSION_SILENCE if away is not None else None)


def pause(due: datetime | None, now: datetime) -> timedelta:
    """Return how long to sleep: precisely until ``due``, within bounds.

    A moment that has passed was looked at already. The shortest sleep keeps a
    job that cannot be settled from making a busy loop.
    """
    if due is None:
        return _LONGEST
    left = due - now
    return min(left, _LONGEST) if left > timedelta(0) else _SHORTEST


async def keep_deadlines(desk: Desk) -> None:
    """Settle jobs whenever time has changed them; runs until it is cancelled."""
    since: datetime | None = None
    while True:
        # What becomes due from here on is told by the timer.
        desk.bells.take_due()
        now = desk.clock()
        for job_id in await desk.read(partial(due_jobs, since=since, now=now)):
            await _settle(desk, job_id)
        since = now
        await _sleep_until(desk, await desk.read(partial(next_due, now=now)))


async def _settle(desk: Desk, job_id: str) -> None:
    turn = desk.turn()
    try:
        # Watchers read of an unreachable node even where no state changes.
        await desk.commit(lambda session: (None, settle(session, job_id, turn) | Changed(frozenset({job_id}))))
    except Exception:
        # One job that cannot be settled must not stop the clock for all.
        _log.exception("job_not_settled", job_id=job_id)


async def _sleep_until(desk: Desk, due: datetime | None) -> None:
    while True:
        try:
            async with asyncio.timeout(pause(due, desk.clock()).total_seconds()):
                await desk.bells.timer.wait()
        except TimeoutError:
            return
        due = earliest(due, desk.bells.take_due())
