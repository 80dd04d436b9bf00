"""What waits for a second operator. Works inside the caller's transaction and never commits."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.store.paging import Page, Slice, cut
from coordinator.store.trust_models import ProposalRow
from hansa.contract.errors import HansaError, Reason


class ProposalState(enum.StrEnum):
    """Where a proposal stands; only an open one can be carried out."""

    OPEN = "OPEN"
    CARRIED_OUT = "CARRIED_OUT"
    WITHDRAWN = "WITHDRAWN"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A call of one operator that needs a second; ``digest`` is of the method and its arguments."""

    proposal_id: str
    method: str
    subject: str
    digest: bytes
    proposed_by: str
    proposed_at: datetime
    expires_at: datetime


class ProposalRepository:
    """Proposals; a closed one stays as it is."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def open_for(self, digest: bytes) -> Proposal | None:
        """Return the open proposal of this call, if there is one."""
        query = select(ProposalRow).where(ProposalRow.digest == digest, ProposalRow.state == ProposalState.OPEN)
        row = self._session.scalar(query)
        return None if row is None else _proposal(row)

    def add(self, proposal: Proposal) -> None:
        """Store an open proposal."""
        self._session.add(
            ProposalRow(
                proposal_id=proposal.proposal_id,
                method=proposal.method,
                subject=proposal.subject,
                digest=proposal.digest,
                proposed_by=proposal.proposed_by,
                proposed_at=proposal.proposed_at,
                expires_at=proposal.expires_at,
                state=ProposalState.OPEN,
                closed_by="",
            )
        )
        self._session.flush()

    def close(self, proposal_id: str, state: ProposalState, by: str) -> Proposal:
        """Return the proposal that was open until now.

        Raises:
            HansaError: ``PROPOSAL_UNKNOWN``; there is no open one of this id.
        """
        row = self._session.get(ProposalRow, proposal_id)
        if row is None or row.state != ProposalState.OPEN:
            raise HansaError(Reason.PROPOSAL_UNKNOWN, field="proposal_id")
        row.state, row.closed_by = state, by
        self._session.flush()
        return _proposal(row)

    def overdue(self, now: datetime) -> Sequence[Proposal]:
        """Return the open proposals whose time has run out."""
        query = select(ProposalRow).where(ProposalRow.state == ProposalState.OPEN, ProposalRow.expires_at <= now)
        return [_proposal(row) for row in self._session.scalars(query.order_by(ProposalRow.proposal_id)).all()]

    def page(self, page: Page) -> Slice[Proposal]:
        """Return open proposals in the order of their ids."""
        query = select(ProposalRow).where(ProposalRow.proposal_id > page.after, ProposalRow.state == ProposalState.OPEN)
        rows = self._session.scalars(query.order_by(ProposalRow.proposal_id).limit(page.limit + 1)).all()
        return cut(rows, page, lambda row: row.proposal_id, _proposal)


def _proposal(row: ProposalRow) -> Proposal:
    return Proposal(
        proposal_id=row.proposal_id,
        method=row.method,
        subject=row.subject,
        digest=row.digest,
        proposed_by=row.proposed_by,
        proposed_at=row.proposed_at,
        expires_at=row.expires_at,
    )
