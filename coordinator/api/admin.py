"""``AdminService``: the federation operator's calls. Only operators get here (METHOD_POLICY)."""

# Names and signatures of methods are the protocol's.
# ruff: noqa: N802, ARG002

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy.orm import Session

from coordinator.api.audit import AuditMethods
from coordinator.api.caller import current_caller
from coordinator.api.guard import Context
from coordinator.api.messages import node_message, person_message, proposal_message, timestamp
from coordinator.api.pages import page_of, token_of
from coordinator.services.desk import Desk
from coordinator.services.nodes import (
    Act,
    Invite,
    because,
    confirm_node,
    invitation_life,
    invitation_secret,
    invite_node,
    node_name,
    resume_node,
    revoke_node,
    suspend_node,
)
from coordinator.services.proposals import list_proposals, withdraw
from coordinator.services.reconciliation import reconcile_node
from coordinator.services.trust import Delivery, TrustDuty, put_in_force
from coordinator.services.witnessing import LogKeeper
from coordinator.store.persons import PersonRepository
from hansa.contract.errors import Reason
from hansa.contract.ids import NodeId
from hansa.v1 import admin_service_pb2 as wire

PUBLICATION_BYTES: Final = 64 << 20
_PUBLISHED: Final = re.compile(r"metadata/[1-9][0-9]{0,17}\.(?:root|targets)\.json|targets/[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Inviting:
    """What invitations are made of; ``endpoint`` is where to enrol."""

    key: bytes
    endpoint: str


class AdminServicer(AuditMethods):
    """Parse, one call, convert."""

    def __init__(
        self,
        desk: Desk,
        inviting: Inviting,
        duty: TrustDuty,
        keeper: LogKeeper,
        cut: Callable[[NodeId, Reason], None],
    ) -> None:
        """Take what the methods need.

        Args:
            desk: runs transactions.
            inviting: what invitations are made of.
            duty: what the coordinator signs and answers for.
            keeper: what the audit log's checkpoints are made with.
            cut: ends the live session of a node, for a reason; called after the commit.
        """
        super().__init__(desk, keeper)
        self._inviting = inviting
        self._duty = duty
        self._cut = cut

    async def ListPersons(self, request: wire.ListPersonsRequest, context: Context) -> wire.ListPersonsResponse:
        """Return people by name."""
        page = page_of(request)
        found = await self._calls.read(lambda session: PersonRepository(session).page(page))
        return wire.ListPersonsResponse(
            persons=[person_message(person) for person in found.items], next_page_token=token_of(found.last)
        )

    async def InviteNode(self, request: wire.InviteNodeRequest, context: Context) -> wire.InviteNodeResponse:
        """Return a secret; the stored answer is without it, and it is derived again for a repeat.

        The session of a member that is invited again ends.
        """
        node = node_name(request.node)
        life = invitation_life(request.valid_seconds)
        secret = invitation_secret(self._inviting.key, caller=current_caller().subject, request_id=request.request_id)

        def work(session: Session, act: Act) -> wire.InviteNodeResponse:
            expires_at = act.now + life
            invite = Invite(node=node, secret=secret, expires_at=expires_at, again=request.again)
            invite_node(session, invite, act)
            return wire.InviteNodeResponse(expires_at=timestamp(expires_at))

        subject = f"{node}{' again' if request.again else ''} for {int(life.total_seconds())} s"
        answer = await self._calls.change_by_two(request, subject, work, wire.InviteNodeResponse)
        # Its certificates are worth nothing any more; a node that is new has no session.
        self._cut(node, Reason.CERTIFICATE_REFUSED)
        answer.secret, answer.endpoint = secret, self._inviting.endpoint
        return answer

    async def ConfirmNode(self, request: wire.ConfirmNodeRequest, context: Context) -> wire.ConfirmNodeResponse:
        """Admit a node."""
        node = node_name(request.node)

        def work(session: Session, act: Act) -> wire.ConfirmNodeResponse:
            return wire.ConfirmNodeResponse(
                node=node_message(confirm_node(session, node, request.key_fingerprint, act))
            )

        return await self._calls.change(request, work, wire.ConfirmNodeResponse)

    async def SuspendNode(self, request: wire.SuspendNodeRequest, context: Context) -> wire.SuspendNodeResponse:
        """Refuse a node's calls, and end its session."""
        node = node_name(request.node)

        def work(session: Session, act: Act) -> wire.SuspendNodeResponse:
            return wire.SuspendNodeResponse(node=node_message(suspend_node(session, node, request.reason, act)))

        answer = await self._calls.change(request, work, wire.SuspendNodeResponse)
        self._cut(node, Reason.NODE_SUSPENDED)
        return answer

    async def ResumeNode(self, request: wire.ResumeNodeRequest, context: Context) -> wire.ResumeNodeResponse:
        """Admit a node again."""
        node = node_name(request.node)

        def work(session: Session, act: Act) -> wire.ResumeNodeResponse:
            return wire.ResumeNodeResponse(node=node_message(resume_node(session, node, act)))

        return await self._calls.change_by_two(request, node, work, wire.ResumeNodeResponse)

    async def ReconcileNode(self, request: wire.ReconcileNodeRequest, context: Context) -> wire.ReconcileNodeResponse:
        """Admit a node once with a restored store."""
        node = node_name(request.node)

        def work(session: Session, act: Act) -> wire.ReconcileNodeResponse:
            return wire.ReconcileNodeResponse(node=node_message(reconcile_node(session, node, act)))

        return await self._calls.change_by_two(request, node, work, wire.ReconcileNodeResponse)

    async def RevokeNode(self, request: wire.RevokeNodeRequest, context: Context) -> wire.RevokeNodeResponse:
        """End a membership, and the node's session."""
        node = node_name(request.node)

        def work(session: Session, act: Act) -> wire.RevokeNodeResponse:
            return wire.RevokeNodeResponse(node=node_message(revoke_node(session, node, request.reason, act)))

        subject = because(node, request.reason)
        answer = await self._calls.change_by_two(request, subject, work, wire.RevokeNodeResponse)
        self._cut(node, Reason.NODE_REVOKED)
        return answer

    async def ListProposals(self, request: wire.ListProposalsRequest, context: Context) -> wire.ListProposalsResponse:
        """Return what waits for a second operator."""
        page, now = page_of(request), self._desk.clock()
        found = await self._calls.read(lambda session: list_proposals(session, page, now))
        return wire.ListProposalsResponse(
            proposals=[proposal_message(proposal) for proposal in found.items], next_page_token=token_of(found.last)
        )

    async def WithdrawProposal(
        self, request: wire.WithdrawProposalRequest, context: Context
    ) -> wire.WithdrawProposalResponse:
        """Take back what waits for a second operator."""

        def work(session: Session, act: Act) -> wire.WithdrawProposalResponse:
            return wire.WithdrawProposalResponse(proposal=proposal_message(withdraw(session, request.proposal_id, act)))

        return await self._calls.change(request, work, wire.WithdrawProposalResponse)

    async def PublishTrust(
        self, request_iterator: AsyncIterator[wire.PublishTrustRequest], context: Context
    ) -> wire.PublishTrustResponse:
        """Put a new version of the trust repository in force; the same files again change nothing."""
        delivery = Delivery(is_published_name, PUBLICATION_BYTES)
        async for part in request_iterator:
            delivery.add(part.name, part.chunk)
        turn = self._desk.turn()
        publish = partial(
            put_in_force,
            files=delivery.files(),
            duty=self._duty,
            act=Act(current_caller().name, turn.now),
            turn=turn,
        )
        state = await self._desk.commit(publish)
        return wire.PublishTrustResponse(
            root_version=state.root_version,
            targets_version=state.targets_version,
            snapshot_version=state.snapshot_version,
            timestamp_version=state.timestamp_version,
            directory_version=state.directory_version,
        )


def is_published_name(name: str) -> bool:
    """Say whether a publication may have a file of this name; snapshot and timestamp are the coordinator's."""
    return _PUBLISHED.fullmatch(name) is not None
