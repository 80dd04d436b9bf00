"""Released summaries. Works inside the caller's transaction, never commits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.store.job_models import RunRow, SummaryRow


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSummary:
    """A summary that was read and found to be what was announced."""

    run_id: str
    digest: bytes
    content: bytes
    empty: bool


class SummaryRepository:
    """One summary per run, stored once."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def digest(self, run_id: str) -> bytes | None:
        """Return the digest of the stored summary, or None."""
        return self._session.scalar(select(SummaryRow.digest).where(SummaryRow.run_id == run_id))

    def add(self, summary: NewSummary, now: datetime) -> None:
        """Store a summary for a run that has none."""
        self._session.add(
            SummaryRow(
                run_id=summary.run_id,
                digest=summary.digest,
                size=len(summary.content),
                empty=summary.empty,
                content=summary.content,
                stored_at=now,
            )
        )
        self._session.flush()

    def contents(self, job_id: str) -> dict[str, bytes]:
        """Return the stored summaries of a job's released runs, by node."""
        rows = self._session.execute(
            select(RunRow.node, SummaryRow.content)
            .join(SummaryRow, SummaryRow.run_id == RunRow.run_id)
            .where(RunRow.job_id == job_id, RunRow.state == "RELEASED")
            .order_by(RunRow.position)
        )
        return {row.node: row.content for row in rows}
