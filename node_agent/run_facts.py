"""What the store knows of runs, as the rules want it, however many runs wait."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hansa.contract.states import RUN_TERMINAL, RunState
from node_agent.offers import ACTIVE
from node_agent.run_rules import RunFacts, Share
from node_agent.store.models import RunRow

_OPEN: Final = [state.value for state in RunState if state not in RUN_TERMINAL]
# So many are expired in one transaction; the rest a second later.
_BATCH: Final = 200


def facts_of(run: RunRow) -> RunFacts:
    """Return what the rules have to know of ``run``."""
    return RunFacts(
        run_id=run.run_id,
        attempt=run.attempt,
        execution=run.execution,
        state=RunState(run.state),
        not_after=run.not_after,
        created_at=run.created_at,
        enqueued_at=run.enqueued_at,
        beat_at=run.beat_at,
        worker=run.worker,
        claim=run.claim,
        project=run.project,
    )


def in_states(session: Session, states: Collection[RunState]) -> Sequence[RunRow]:
    """Return the runs in one of ``states``."""
    return session.scalars(select(RunRow).where(RunRow.state.in_([state.value for state in states]))).all()


def past_deadline(session: Session, now: datetime) -> Sequence[RunRow]:
    """Return runs that have not ended although their time is over; not all of them if they are many."""
    late = select(RunRow).where(RunRow.state.in_(_OPEN), RunRow.not_after <= now)
    return session.scalars(late.order_by(RunRow.not_after).limit(_BATCH)).all()


def oldest_queued(session: Session, most: int) -> Sequence[RunFacts]:
    """Return the ``most`` oldest queued runs of each project."""
    if most <= 0:
        return []
    found: list[RunFacts] = []
    for project in _waiting_projects(session):
        queued = select(RunRow).where(RunRow.state == RunState.QUEUED, RunRow.project == project)
        oldest = queued.order_by(RunRow.created_at, RunRow.run_id).limit(most)
        found += [facts_of(run) for run in session.scalars(oldest)]
    return found


def shares(session: Session) -> Mapping[str, Share]:
    """Return what the projects that wait have had."""
    active = [state.value for state in ACTIVE]
    return {
        project: Share(
            session.scalar(
                select(func.count()).select_from(RunRow).where(RunRow.state.in_(active), RunRow.project == project)
            )
            or 0,
            session.scalar(select(func.max(RunRow.enqueued_at)).where(RunRow.project == project)),
        )
        for project in _waiting_projects(session)
    }


def _waiting_projects(session: Session) -> Sequence[str]:
    return session.scalars(select(RunRow.project).where(RunRow.state == RunState.QUEUED).distinct()).all()
