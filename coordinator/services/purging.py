"""Deleting results whose time is over; that they were there, and who signed them, stays."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from coordinator.store.audit import AuditRepository
from coordinator.store.job_models import JOBS, RUNS, SUMMARIES

_log = structlog.get_logger(__name__)
# In one transaction; what is left comes with the next housekeeping.
_AT_ONCE: Final = 500
_ACTOR: Final = "coordinator"


def purge_results(session: Session, now: datetime, *, kept: timedelta) -> int:
    """Delete the results of jobs that ended longer ago than ``kept``, and the summaries they were made of.

    Jobs, runs, statements and digests stay: what was released is not
    forgotten, and no other summary can take a deleted one's place.
    """
    due = select(JOBS.c.job_id).where(JOBS.c.ended_at < now - kept, JOBS.c.result.is_not(None))
    jobs = list(session.scalars(due.order_by(JOBS.c.ended_at).limit(_AT_ONCE)))
    if not jobs:
        return 0
    session.execute(update(JOBS).where(JOBS.c.job_id.in_(jobs)).values(result=None))
    runs = select(RUNS.c.run_id).where(RUNS.c.job_id.in_(jobs))
    session.execute(update(SUMMARIES).where(SUMMARIES.c.run_id.in_(runs)).values(content=b""))
    AuditRepository(session).append(at=now, actor=_ACTOR, action="results_purged", subject=f"{len(jobs)} jobs")
    _log.info("results_purged", jobs=len(jobs))
    return len(jobs)
