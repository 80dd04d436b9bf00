"""The ledger of signed jobs, inside the caller's transaction: no job is taken twice."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from hansa.contract.job import JobSpec
from hansa.contract.limits import CLOCK_TOLERANCE
from node_agent.store.models import LedgerRow


def known_digest(session: Session, spec: JobSpec) -> str | None:
    """Return the digest of the envelope in which the job's id or nonce came before; None if neither did.

    Empty if they stood in two different jobs, or not together.
    """
    rows = session.scalars(
        select(LedgerRow).where(or_(LedgerRow.job_id == spec.job_id, LedgerRow.nonce == spec.nonce))
    ).all()
    if not rows:
        return None
    same = len(rows) == 1 and (rows[0].job_id, rows[0].nonce) == (spec.job_id, spec.nonce)
    return rows[0].digest if same else ""


def enter(session: Session, spec: JobSpec, digest: str) -> None:
    """Write down a job that does not stand there; its submitter's signature was verified."""
    until = spec.not_after.astimezone(UTC) + CLOCK_TOLERANCE
    session.add(LedgerRow(job_id=spec.job_id, nonce=spec.nonce, digest=digest, keep_until=until))


def forget(session: Session, now: datetime) -> None:
    """Delete what can come no more: jobs whose validity is over, beyond the tolerated clock error."""
    session.execute(delete(LedgerRow).where(LedgerRow.keep_until < now))
