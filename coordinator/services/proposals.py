"""The two-person rule: what one operator asks for is done when a second asks for the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar

import structlog
from sqlalchemy.orm import Session

from coordinator.services.nodes import Act
from coordinator.store.audit import AuditRepository
from coordinator.store.paging import Page, Slice
from coordinator.store.persons import PersonRepository
from coordinator.store.proposals import Proposal, ProposalRepository, ProposalState
from hansa.contract.digests import canonical
from hansa.contract.directory import Role
from hansa.contract.errors import HansaError, Reason

_log = structlog.get_logger(__name__)

T = TypeVar("T")

PROPOSAL_LIFE: Final = timedelta(hours=24)
_COORDINATOR: Final = "coordinator"


@dataclass(frozen=True, slots=True)
class Call:
    """A call under the two-person rule.

    ``arguments`` are all that must be the same the second time; ``subject``
    says for people what it is about. ``proposal_id`` is for a new proposal.
    """

    method: str
    subject: str
    arguments: bytes
    proposal_id: str

    @property
    def digest(self) -> bytes:
        """What the first and the second call have in common."""
        return hashlib.sha256(canonical([self.method, self.arguments.hex()])).digest()


def carry_out(session: Session, call: Call, act: Act, work: Callable[[], T]) -> T | Proposal:
    """Return what ``work`` returns if another operator has proposed this call; else the proposal.

    The first time ``work`` is tried and taken back, so that a call that is
    refused anyway waits for nobody.

    Raises:
        HansaError: what ``work`` refuses.
    """
    expire_proposals(session, act.now)
    proposals = ProposalRepository(session)
    waiting = proposals.open_for(call.digest)
    if waiting is not None and not _is_operator(session, waiting.proposed_by):
        # Whoever proposed it has left, or lost the role: one word less.
        proposals.close(waiting.proposal_id, ProposalState.WITHDRAWN, _COORDINATOR)
        _record(session, Act(_COORDINATOR, act.now), "proposal_withdrawn", waiting)
        waiting = None
    if waiting is not None and waiting.proposed_by != act.actor:
        proposals.close(waiting.proposal_id, ProposalState.CARRIED_OUT, act.actor)
        _record(session, act, "proposal_seconded", waiting)
        return work()
    with session.begin_nested() as trial:
        work()
        trial.rollback()
    if waiting is None:
        waiting = _propose(session, call, act)
    return waiting


def _is_operator(session: Session, name: str) -> bool:
    person = PersonRepository(session).get(name)
    return person is not None and Role.FEDERATION_OPERATOR in person.roles


def _propose(session: Session, call: Call, act: Act) -> Proposal:
    proposal = Proposal(
        proposal_id=call.proposal_id,
        method=call.method,
        subject=call.subject,
        digest=call.digest,
        proposed_by=act.actor,
        proposed_at=act.now,
        expires_at=act.now + PROPOSAL_LIFE,
    )
    ProposalRepository(session).add(proposal)
    _record(session, act, "proposal_made", proposal)
    return proposal


def pending_second(proposal: Proposal) -> HansaError:
    """Return what the first operator is told; the field is the proposal's id."""
    return HansaError(
        Reason.PENDING_SECOND,
        "A second federation operator has to run the same command, with the same options, by "
        f"{proposal.expires_at:%Y-%m-%d %H:%M} UTC; until then nothing happens.",
        field=proposal.proposal_id,
    )


def list_proposals(session: Session, page: Page, now: datetime) -> Slice[Proposal]:
    """Return what waits for a second operator."""
    expire_proposals(session, now)
    return ProposalRepository(session).page(page)


def withdraw(session: Session, proposal_id: str, act: Act) -> Proposal:
    """Take a proposal back; any operator may.

    Raises:
        HansaError: ``PROPOSAL_UNKNOWN``.
    """
    expire_proposals(session, act.now)
    proposal = ProposalRepository(session).close(proposal_id, ProposalState.WITHDRAWN, act.actor)
    _record(session, act, "proposal_withdrawn", proposal)
    return proposal


def expire_proposals(session: Session, now: datetime) -> None:
    """Close what nobody has seconded in time."""
    proposals = ProposalRepository(session)
    for proposal in proposals.overdue(now):
        proposals.close(proposal.proposal_id, ProposalState.EXPIRED, _COORDINATOR)
        _record(session, Act(_COORDINATOR, now), "proposal_expired", proposal)


def _record(session: Session, act: Act, action: str, proposal: Proposal) -> None:
    subject = f"{proposal.method} {proposal.subject} ({proposal.proposal_id})"
    AuditRepository(session).append(at=act.now, actor=act.actor, action=action, subject=subject)
    _log.info(action, proposal_id=proposal.proposal_id, method=proposal.method, actor=act.actor)
