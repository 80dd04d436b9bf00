"""``AdminService``: the federation operator's calls. Only operators get here (METHOD_POLICY)."""

# Names and signatures of methods are the protocol's.
# ruff: noqa: N802, ARG002

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from coordinator.api.caller import current_caller
from coordinator.api.calls import Calls
from coordinator.api.guard import Context
from coordinator.api.messages import analysis_message, audit_message, node_message, person_message, timestamp
from coordinator.api.pages import number_page_of, page_of, token_of
from coordinator.services.catalogue import make_analysis, publish_analysis
from coordinator.services.nodes import (
    Act,
    confirm_node,
    invitation_life,
    invitation_secret,
    invite_node,
    node_name,
    resume_node,
    revoke_node,
    suspend_node,
)
from coordinator.services.people import add_person, make_person
from coordinator.store.audit import AuditRepository
from coordinator.store.persons import PersonRepository
from hansa.contract.enrolment import Invitation
from hansa.contract.errors import Reason
from hansa.contract.ids import NodeId
from hansa.v1 import admin_service_pb2 as wire
from hansa.v1 import admin_service_pb2_grpc


@dataclass(frozen=True, slots=True)
class Inviting:
    """What invitation tokens are made of.

    ``ca_fingerprint`` is SHA-256 of the server CA's DER form; ``endpoint`` is
    where to enrol.
    """

    key: bytes
    ca_fingerprint: bytes
    endpoint: str


class AdminServicer(admin_service_pb2_grpc.AdminServiceServicer):
    """Parse, one call, convert."""

    def __init__(self, calls: Calls, inviting: Inviting, cut: Callable[[NodeId, Reason], None]) -> None:
        """Take what the methods need.

        Args:
            calls: runs transactions.
            inviting: what tokens are made of.
            cut: ends the live session of a node, for a reason; called after the commit.
        """
        self._calls = calls
        self._inviting = inviting
        self._cut = cut

    async def AddPerson(self, request: wire.AddPersonRequest, context: Context) -> wire.AddPersonResponse:
        """Make a person known."""
        person = make_person(request.name, request.role, request.public_key_pem)

        def work(session: Session, act: Act) -> wire.AddPersonResponse:
            added = add_person(session, person, actor=act.actor, now=act.now)
            return wire.AddPersonResponse(person=person_message(added))

        return await self._calls.change(request, work, wire.AddPersonResponse)

    async def ListPersons(self, request: wire.ListPersonsRequest, context: Context) -> wire.ListPersonsResponse:
        """Return people by name."""
        page = page_of(request)
        found = await self._calls.read(lambda session: PersonRepository(session).page(page))
        return wire.ListPersonsResponse(
            persons=[person_message(person) for person in found.items], next_page_token=token_of(found.last)
        )

    async def InviteNode(self, request: wire.InviteNodeRequest, context: Context) -> wire.InviteNodeResponse:
        """Return a token; the stored answer is without it, and it is derived again for a repeat."""
        node = node_name(request.node)
        life = invitation_life(request.valid_seconds)
        secret = invitation_secret(self._inviting.key, caller=current_caller().subject, request_id=request.request_id)

        def work(session: Session, act: Act) -> wire.InviteNodeResponse:
            expires_at = act.now + life
            invite_node(session, node, secret, expires_at=expires_at, act=act)
            return wire.InviteNodeResponse(expires_at=timestamp(expires_at))

        answer = await self._calls.change(request, work, wire.InviteNodeResponse)
        invitation = Invitation(node, secret, self._inviting.ca_fingerprint, self._inviting.endpoint)
        answer.token = invitation.token()
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

        return await self._calls.change(request, work, wire.ResumeNodeResponse)

    async def RevokeNode(self, request: wire.RevokeNodeRequest, context: Context) -> wire.RevokeNodeResponse:
        """End a membership, and the node's session."""
        node = node_name(request.node)

        def work(session: Session, act: Act) -> wire.RevokeNodeResponse:
            return wire.RevokeNodeResponse(node=node_message(revoke_node(session, node, request.reason, act)))

        answer = await self._calls.change(request, work, wire.RevokeNodeResponse)
        self._cut(node, Reason.NODE_REVOKED)
        return answer

    async def PublishAnalysis(
        self, request: wire.PublishAnalysisRequest, context: Context
    ) -> wire.PublishAnalysisResponse:
        """Put an analysis in the catalogue."""
        analysis = make_analysis(request.manifest, request.digest)

        def work(session: Session, act: Act) -> wire.PublishAnalysisResponse:
            return wire.PublishAnalysisResponse(analysis=analysis_message(publish_analysis(session, analysis, act)))

        return await self._calls.change(request, work, wire.PublishAnalysisResponse)

    async def ListAudit(self, request: wire.ListAuditRequest, context: Context) -> wire.ListAuditResponse:
        """Return what was done, newest first."""
        page = number_page_of(request)
        found = await self._calls.read(lambda session: AuditRepository(session).page(page))
        return wire.ListAuditResponse(
            entries=[audit_message(entry) for entry in found.items], next_page_token=token_of(found.last)
        )
