"""Telling the coordinator again what was told before: states of runs, and releases as they were signed.

Nothing is made anew: a release is told with the statement that was signed with
it, and its summary goes out again as the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hansa.contract.envelope import from_json
from hansa.contract.states import RunState
from node_agent.reporting import Reporter
from node_agent.store.models import DatasetRow, LoggedReleaseRow, RunRow, SummaryRow
from node_agent.store.outbox import append_event


def tell_everything(session: Session, reporter: Reporter, now: datetime, *, with_jobs: bool) -> None:
    """Append the inventory and every run's present state.

    Args:
        session: the caller's transaction.
        reporter: makes the bodies.
        now: aware time.
        with_jobs: also the jobs that a coordinator could still take back.
    """
    datasets: Sequence[DatasetRow] = session.scalars(select(DatasetRow).order_by(DatasetRow.dataset_id)).all()
    append_event(session, reporter.inventory(datasets, now), now)
    runs: Sequence[RunRow] = session.scalars(select(RunRow).order_by(RunRow.created_at, RunRow.run_id)).all()
    for run in runs:
        if with_jobs and run.not_after > now:
            append_event(session, reporter.job(run, now), now)
        tell_run(session, run, reporter, now)


def tell_run(session: Session, run: RunRow, reporter: Reporter, now: datetime) -> None:
    """Append a run's present state; of a released one the release, as it was signed, and have its bytes sent again."""
    row = session.get(SummaryRow, run.run_id)
    if run.state == RunState.RELEASED and row is not None and row.statement is not None:
        append_event(session, reporter.released(run, row.outgoing, from_json(row.statement), now), now)
        if row.outgoing is not None:
            row.uploaded_at = None
        # The proof that it is in our log goes out again too, with the next cosignature.
        logged = update(LoggedReleaseRow).where(LoggedReleaseRow.run_id == run.run_id).values(told=False)
        session.execute(logged)
    append_event(session, reporter.run(run, now), now)
