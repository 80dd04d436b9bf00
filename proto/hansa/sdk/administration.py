"""The federation operator's calls."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from hansa.contract.limits import MAX_PAGE
from hansa.sdk.bundle import Bundle
from hansa.sdk.connection import Connection
from hansa.sdk.paging import read_pages
from hansa.v1 import admin_service_pb2 as wire
from hansa.v1 import admin_service_pb2_grpc, types_pb2


class AdminClient:
    """People, memberships of nodes, the analysis catalogue, the audit list.

    Every method raises ``RemoteError``; ``PERMISSION_DENIED`` where the caller
    is no operator.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = admin_service_pb2_grpc.AdminServiceStub(connection.channel)

    async def add_person(self, name: str, *, role: str, public_key_pem: str) -> wire.Person:
        """Make a person known. The same name, role and key again change nothing."""
        request = wire.AddPersonRequest(
            request_id=self._connection.request_id(), name=name, role=role, public_key_pem=public_key_pem
        )
        return (await self._connection.call(self._stub.AddPerson, request)).person

    async def persons(self) -> list[wire.Person]:
        """Return everybody who is known."""

        async def fetch(token: str) -> tuple[Sequence[wire.Person], str]:
            request = wire.ListPersonsRequest(page_size=MAX_PAGE, page_token=token)
            answer = await self._connection.call(self._stub.ListPersons, request)
            return answer.persons, answer.next_page_token

        return await read_pages(fetch)

    async def invite_node(self, node: str, *, valid: timedelta) -> wire.InviteNodeResponse:
        """Return the invitation: the token is told this once and stored nowhere."""
        request = wire.InviteNodeRequest(
            request_id=self._connection.request_id(), node=node, valid_seconds=int(valid.total_seconds())
        )
        return await self._connection.call(self._stub.InviteNode, request)

    async def confirm_node(self, node: str, *, key_fingerprint: str) -> types_pb2.Node:
        """Activate a node whose key has the fingerprint that the operator compared."""
        request = wire.ConfirmNodeRequest(
            request_id=self._connection.request_id(), node=node, key_fingerprint=key_fingerprint
        )
        return (await self._connection.call(self._stub.ConfirmNode, request)).node

    async def suspend_node(self, node: str, *, reason: str) -> types_pb2.Node:
        """Refuse the node's calls until it is resumed."""
        request = wire.SuspendNodeRequest(request_id=self._connection.request_id(), node=node, reason=reason)
        return (await self._connection.call(self._stub.SuspendNode, request)).node

    async def resume_node(self, node: str) -> types_pb2.Node:
        """Take a suspension back."""
        request = wire.ResumeNodeRequest(request_id=self._connection.request_id(), node=node)
        return (await self._connection.call(self._stub.ResumeNode, request)).node

    async def revoke_node(self, node: str, *, reason: str) -> types_pb2.Node:
        """End the node's membership for good."""
        request = wire.RevokeNodeRequest(request_id=self._connection.request_id(), node=node, reason=reason)
        return (await self._connection.call(self._stub.RevokeNode, request)).node

    async def publish_analysis(self, bundle: Bundle) -> types_pb2.Analysis:
        """Publish a bundle's manifest and digest."""
        request = wire.PublishAnalysisRequest(
            request_id=self._connection.request_id(), manifest=bundle.manifest_bytes, digest=bundle.digest
        )
        return (await self._connection.call(self._stub.PublishAnalysis, request)).analysis

    async def audit(self, *, limit: int) -> list[wire.AuditEntry]:
        """Return the newest ``limit`` entries of what operators did, newest first."""

        async def fetch(token: str) -> tuple[Sequence[wire.AuditEntry], str]:
            request = wire.ListAuditRequest(page_size=min(limit, MAX_PAGE), page_token=token)
            answer = await self._connection.call(self._stub.ListAudit, request)
            return answer.entries, answer.next_page_token

        return await read_pages(fetch, limit=limit)
