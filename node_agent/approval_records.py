"""Approvals in the store, inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from hansa.contract.approval import Approval, JobApproval
from hansa.contract.digests import digest
from hansa.contract.envelope import APPROVAL_TYPE, Signed
from hansa.contract.job import JobSpec
from node_agent.policy.admission import Taken
from node_agent.policy.approvals import HeldApproval
from node_agent.store.models import ApprovalRow, RunApprovalRow, RunRow


def approvals_of(session: Session, run: RunRow) -> tuple[str, ...]:
    """Return the digests of the approvals' payloads under which ``run`` was admitted, in a fixed order."""
    rows = session.scalars(select(RunApprovalRow.digest).where(RunApprovalRow.run_id == run.run_id))
    return tuple(sorted(rows))


def taken_of(session: Session, run: RunRow) -> Sequence[Taken]:
    """Return the approvals under which ``run`` was admitted, as they stand now."""
    rows = session.execute(
        select(RunApprovalRow, ApprovalRow)
        .outerjoin(ApprovalRow, ApprovalRow.approval_id == RunApprovalRow.approval_id)
        .where(RunApprovalRow.run_id == run.run_id)
    )
    return [
        Taken(None if held is None or held.revoked_at is not None else held_approval(held), given.at)
        for given, held in rows
    ]


def that_may_speak_of(session: Session, spec: JobSpec) -> Sequence[HeldApproval]:
    """Return the approvals that are not revoked and may speak of ``spec``: the job's own ones first."""
    scopes = (spec.job_id, standing_scope(spec.project, f"{spec.analysis.name}@{spec.analysis.version}"))
    rows = session.scalars(
        select(ApprovalRow)
        .where(ApprovalRow.scope.in_(scopes), ApprovalRow.revoked_at.is_(None))
        .order_by(ApprovalRow.kind, ApprovalRow.added_at)
    )
    return [held_approval(row) for row in rows]


def standing_scope(project: str, analysis: str) -> str:
    """Return what a standing approval is found by."""
    return f"{project}/{analysis}"


def held_approval(row: ApprovalRow) -> HeldApproval:
    """Return what is stored as decisions take it."""
    signed = Signed(APPROVAL_TYPE, row.payload, row.approver, row.signature)
    return HeldApproval(row.approval_id, row.digest, signed)


def keep_approval(session: Session, signed: Signed, approval: Approval, now: datetime) -> ApprovalRow:
    """Store an approval that was checked; return its row."""
    if isinstance(approval, JobApproval):
        scope = approval.job_id
    else:
        scope = standing_scope(approval.project, f"{approval.analysis.name}@{approval.analysis.version}")
    row = ApprovalRow(
        approval_id=approval.approval_id,
        kind=approval.kind,
        scope=scope,
        digest=digest(signed.payload),
        payload=signed.payload,
        approver=approval.approver,
        signature=signed.signature,
        added_at=now,
        revoked_at=None,
        revoked_by="",
    )
    session.add(row)
    session.flush()
    return row


def admit_under(session: Session, run: RunRow, held: HeldApproval, now: datetime) -> None:
    """Note that ``run``, which waited or is new, is admitted under ``held``."""
    session.add(RunApprovalRow(run_id=run.run_id, approval_id=held.approval_id, digest=held.digest, at=now))


def forget_admission(session: Session, run_id: str) -> None:
    """Forget under what the run was admitted: it is judged anew."""
    session.execute(delete(RunApprovalRow).where(RunApprovalRow.run_id == run_id))
