"""Release statements as the nodes signed them. Works inside the caller's transaction, never commits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, insert, select
from sqlalchemy.orm import Session

from coordinator.store.job_models import RUNS, STATEMENTS

_OF_RUN: Final = select(STATEMENTS).where(STATEMENTS.c.run_id == bindparam("run_id"))
_OF_JOB: Final = (
    select(RUNS.c.node, STATEMENTS)
    .select_from(RUNS.join(STATEMENTS, STATEMENTS.c.run_id == RUNS.c.run_id))
    .where(RUNS.c.job_id == bindparam("job_id"))
    .order_by(RUNS.c.position)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStatement:
    """A verified statement: ``envelope`` is DSSE JSON, ``digest`` of its payload, ``subject`` the SHA-256 of what left."""

    run_id: str
    digest: str
    subject: bytes
    envelope: bytes


class StatementRepository:
    """One statement per run, stored once."""

    def __init__(self, session: Session) -> None:
        self._connection = session.connection()

    def add(self, statement: StoredStatement, now: datetime) -> None:
        """Store the statement of a run that has none."""
        values = {
            "run_id": statement.run_id,
            "digest": statement.digest,
            "subject": statement.subject,
            "envelope": statement.envelope,
            "stored_at": now,
        }
        self._connection.execute(insert(STATEMENTS), values)

    def get(self, run_id: str) -> StoredStatement | None:
        """Return the statement of a run."""
        row = self._connection.execute(_OF_RUN, {"run_id": run_id}).one_or_none()
        if row is None:
            return None
        return StoredStatement(run_id=row.run_id, digest=row.digest, subject=row.subject, envelope=row.envelope)

    def of_job(self, job_id: str) -> dict[str, StoredStatement]:
        """Return the statements of a job by node."""
        rows = self._connection.execute(_OF_JOB, {"job_id": job_id})
        return {
            row.node: StoredStatement(run_id=row.run_id, digest=row.digest, subject=row.subject, envelope=row.envelope)
            for row in rows
        }
