"""Released summaries. Works inside the caller's transaction, never commits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, insert, select
from sqlalchemy.orm import Session

from coordinator.store.job_models import RUNS, STATEMENTS, SUMMARIES

_CONTENTS: Final = (
    select(RUNS.c.node, SUMMARIES.c.content)
    .select_from(
        RUNS.join(SUMMARIES, SUMMARIES.c.run_id == RUNS.c.run_id).join(
            # Without a signed statement of just these bytes, a summary is nothing.
            STATEMENTS,
            (STATEMENTS.c.run_id == RUNS.c.run_id) & (STATEMENTS.c.subject == SUMMARIES.c.digest),
        )
    )
    .where(RUNS.c.job_id == bindparam("job_id"), RUNS.c.state == "RELEASED")
    .order_by(RUNS.c.position)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSummary:
    """A summary that was found to be what was announced. ``empty``: read, and without a figure."""

    run_id: str
    digest: bytes
    content: bytes
    empty: bool


class SummaryRepository:
    """One summary per run, stored once."""

    def __init__(self, session: Session) -> None:
        self._connection = session.connection()

    def add(self, summary: NewSummary, now: datetime) -> None:
        """Store a summary for a run that has none."""
        values = {
            "run_id": summary.run_id,
            "digest": summary.digest,
            "size": len(summary.content),
            "empty": summary.empty,
            "content": summary.content,
            "stored_at": now,
        }
        self._connection.execute(insert(SUMMARIES), values)

    def contents(self, job_id: str) -> dict[str, bytes]:
        """Return the stored summaries of a job's released runs, by node."""
        rows = self._connection.execute(_CONTENTS, {"job_id": job_id})
        return {row.node: row.content for row in rows}

    def content(self, run_id: str) -> bytes | None:
        """Return the stored summary of one run, as it came."""
        found: bytes | None = self._connection.scalar(select(SUMMARIES.c.content).where(SUMMARIES.c.run_id == run_id))
        return found

    def digest(self, run_id: str) -> bytes | None:
        """Return the SHA-256 of the stored summary of one run."""
        found: bytes | None = self._connection.scalar(select(SUMMARIES.c.digest).where(SUMMARIES.c.run_id == run_id))
        return found
