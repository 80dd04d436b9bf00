"""The use cases of a data holder: approving and declining jobs, standing approvals, revoking them.

A yes is a signed envelope that the agent verifies against the directory and
the node's own policy. A no needs no signature: it only takes away, so whoever
reaches the agent's socket may say it at once, and the audit log says who did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from hansa.contract.approval import Approval, JobApproval, StandingApproval
from hansa.contract.digests import digest
from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason, RunReason
from hansa.contract.job import JobSpec, parse_job
from hansa.contract.states import RunEvent, RunState
from hansa.runtime.clock import Clock
from node_agent.approval_records import keep_approval
from node_agent.audit.entries import (
    approval_added,
    approval_refused,
    approval_revoked,
    job_approved,
    job_declined,
)
from node_agent.audit.log import append
from node_agent.offers import Offers
from node_agent.policy.approvals import checked_approval
from node_agent.reporting import Bells, advance
from node_agent.situation import Situation
from node_agent.store.database import Database
from node_agent.store.models import ApprovalRow, RunRow

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Approvals:
    """One node's approvals."""

    database: Database
    situation: Situation
    offers: Offers
    bells: Bells
    clock: Clock

    async def all(self) -> Sequence[ApprovalRow]:
        """Return all approvals, revoked ones too, the newest first."""
        return await self.database.run(
            lambda session: session.scalars(select(ApprovalRow).order_by(ApprovalRow.added_at.desc())).all()
        )

    async def request(self, run_id: str) -> dict[str, Any]:
        """Return what a data holder has to know, and to sign, of a run that waits.

        Raises:
            HansaError: ``RUN_UNKNOWN``, ``APPROVAL_CONFLICT``.
        """

        def read(session: Session) -> dict[str, Any]:
            run = _waiting(session, run_id)
            return {**_site(self.situation), **_of_job(parse_job(run.payload), run.payload), "run_id": run.run_id}

        return await self.database.run(read)

    async def add(self, signed: Signed) -> ApprovalRow:
        """Take a standing approval; runs that waited for one it covers go on.

        Raises:
            HansaError: ``APPROVAL_INVALID``; ``IDEMPOTENCY_MISMATCH``, its id was used for another.
        """
        return await self._take(signed, None)

    async def approve(self, run_id: str, signed: Signed) -> RunRow:
        """Take the approval of one job; the run goes on, or is declined for what has changed meanwhile.

        Raises:
            HansaError: ``RUN_UNKNOWN``, ``APPROVAL_CONFLICT`` (it does not
                wait), ``APPROVAL_INVALID``, ``SELF_APPROVAL``,
                ``IDEMPOTENCY_MISMATCH``.
        """
        await self._take(signed, run_id)
        return await self.database.run(lambda session: session.get_one(RunRow, run_id))

    async def decline(self, run_id: str, by: str, why: str) -> RunRow:
        """Decline a job that waits for an approval.

        Raises:
            HansaError: ``RUN_UNKNOWN``, ``APPROVAL_CONFLICT``.
        """
        now = self.clock()

        def work(session: Session) -> RunRow:
            run = _waiting(session, run_id)
            append(session, job_declined(run, by, why), now)
            reason = RunReason.APPROVAL_REFUSED
            advance(session, run, RunEvent.DECLINE, reporter=self.offers.reporter, now=now, reason=reason)
            return run

        run = await self.database.run(work)
        self.bells.ring()
        return run

    async def revoke(self, approval_id: str, by: str) -> ApprovalRow:
        """Let an approval count no more, at once; a repeat changes nothing.

        What runs under it is stopped, and nothing of it is released.

        Raises:
            HansaError: ``APPROVAL_UNKNOWN``.
        """
        now = self.clock()

        def work(session: Session) -> ApprovalRow:
            row = session.get(ApprovalRow, approval_id)
            if row is None:
                raise HansaError(Reason.APPROVAL_UNKNOWN)
            if row.revoked_at is None:
                row.revoked_at, row.revoked_by = now, by
                append(session, approval_revoked(row), now)
            return row

        return await self.database.run(work)

    async def _take(self, signed: Signed, run_id: str | None) -> ApprovalRow:
        now = self.clock()

        def work(session: Session) -> ApprovalRow | HansaError:
            run = None if run_id is None else _waiting(session, run_id)
            try:
                approval = self._checked(session, signed, run)
            except HansaError as error:
                # Written down and committed before it is refused.
                append(
                    session, approval_refused(digest(signed.payload), signed.key_id, error.reason, run_id or ""), now
                )
                return error
            return self._kept(session, signed, approval, run, now)

        found = await self.database.run(work)
        self.bells.ring()
        if isinstance(found, HansaError):
            _log.warning("approval_refused", reason=found.reason.value, detail=str(found))
            raise found
        return found

    def _checked(self, session: Session, signed: Signed, run: RunRow | None) -> Approval:
        trust = self.situation.trust()
        if trust is None or trust.expires <= self.clock():
            raise HansaError(Reason.TRUST_EXPIRED)
        approval = checked_approval(
            signed, site=self.situation.site, directory=trust.directory, policy=self.situation.policy()
        )
        known = session.get(ApprovalRow, approval.approval_id)
        if known is not None and (known.payload != signed.payload or known.revoked_at is not None):
            raise HansaError(Reason.IDEMPOTENCY_MISMATCH, field="approval_id")
        if run is None:
            _check_standing(approval, self.clock())
        else:
            _check_job(approval, run)
        return approval

    def _kept(
        self, session: Session, signed: Signed, approval: Approval, run: RunRow | None, now: datetime
    ) -> ApprovalRow:
        row = session.get(ApprovalRow, approval.approval_id)
        if row is None:
            row = keep_approval(session, signed, approval, now)
            append(session, approval_added(row) if run is None else job_approved(run, row), now)
        for waiting in [run] if run is not None else self._covered(session, approval, now):
            self.offers.reconsider(session, waiting, now)
        return row

    def _covered(self, session: Session, approval: Approval, now: datetime) -> Sequence[RunRow]:
        """Return the runs that waited for a standing approval such as this one."""
        if not isinstance(approval, StandingApproval):
            return ()
        waiting = session.scalars(select(RunRow).where(RunRow.state == RunState.AWAITING_APPROVAL)).all()
        return [run for run in waiting if approval.covers(parse_job(run.payload), now)]


def _waiting(session: Session, run_id: str) -> RunRow:
    run = session.get(RunRow, run_id)
    if run is None:
        raise HansaError(Reason.RUN_UNKNOWN)
    if run.state != RunState.AWAITING_APPROVAL:
        raise HansaError(Reason.APPROVAL_CONFLICT)
    return run


def _check_job(approval: Approval, run: RunRow) -> None:
    if not isinstance(approval, JobApproval):
        raise HansaError(Reason.APPROVAL_INVALID, "This is no approval of one job.", field="kind")
    if (approval.job_id, approval.job_digest) != (run.job_id, digest(run.payload)):
        raise HansaError(Reason.APPROVAL_INVALID, "The approval is of another job.", field="job_digest")
    if approval.approver == run.submitter:
        raise HansaError(Reason.SELF_APPROVAL)


def _check_standing(approval: Approval, now: datetime) -> None:
    if not isinstance(approval, StandingApproval):
        raise HansaError(Reason.APPROVAL_INVALID, "This is no standing approval.", field="kind")
    if approval.not_after <= now:
        raise HansaError(Reason.APPROVAL_INVALID, "The approval's time is over.", field="not_after")


def _site(situation: Situation) -> dict[str, str]:
    return {"federation": situation.site.federation, "node": situation.site.node}


def _of_job(spec: JobSpec, payload: bytes) -> dict[str, Any]:
    return {
        "job_id": spec.job_id,
        "job_digest": digest(payload),
        "submitter": spec.submitter,
        "project": spec.project,
        "purpose": spec.purpose,
        "analysis": spec.analysis.model_dump(mode="json"),
        "parameters": dict(spec.parameters),
        "nodes": list(spec.nodes),
        "release_class": spec.release_class.value,
        "not_after": spec.not_after.isoformat(),
    }
