"""The federation operator's calls."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from hansa.contract.enrolment import Invitation, parse_token
from hansa.contract.ids import NodeId
from hansa.contract.limits import CHUNK_BYTES, MAX_PAGE
from hansa.sdk.connection import Connection, read_ca
from hansa.sdk.paging import read_pages
from hansa.sdk.trust import read_trust_root
from hansa.trust.files import METADATA_FOLDER, TARGETS_FOLDER, RepositoryFiles
from hansa.v1 import admin_service_pb2 as wire
from hansa.v1 import admin_service_pb2_grpc, types_pb2


@dataclass(frozen=True, slots=True)
class InvitedNode:
    """An invitation, with the token that the node's operator needs."""

    node: str
    token: str
    expires_at: datetime


class AdminClient:
    """People, memberships of nodes, the trust repository, the audit list.

    Every method raises ``RemoteError``; ``PERMISSION_DENIED`` where the caller
    is no operator.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = admin_service_pb2_grpc.AdminServiceStub(connection.channel)

    async def persons(self) -> list[wire.Person]:
        """Return the people of the directory in force."""

        async def fetch(token: str) -> tuple[Sequence[wire.Person], str]:
            request = wire.ListPersonsRequest(page_size=MAX_PAGE, page_token=token)
            answer = await self._connection.call(self._stub.ListPersons, request)
            return answer.persons, answer.next_page_token

        return await read_pages(fetch)

    async def invite_node(self, node: str, *, valid: timedelta, again: bool = False) -> InvitedNode:
        """Return the invitation: its secret is told this once and stored nowhere.

        The token is made here, with the CA and the trust root of the caller's
        own profile: a coordinator cannot choose what a node will believe.

        Args:
            node: its name.
            valid: for how long.
            again: also a member, whose certificates are revoked by it.

        Raises:
            RemoteError: ``PENDING_SECOND``; another operator has to ask too.
            HansaError: ``CONFIG_INVALID``, ``NODE_INVALID``.
        """
        profile = self._connection.profile
        (ca, *_) = x509.load_pem_x509_certificates(read_ca(profile.ca_file))
        root = read_trust_root(profile.trust_root)
        request = wire.InviteNodeRequest(
            request_id=self._connection.request_id(),
            node=node,
            valid_seconds=int(valid.total_seconds()),
            again=again,
        )
        answer = await self._connection.call(self._stub.InviteNode, request)
        fingerprint, root_digest = ca.fingerprint(hashes.SHA256()), hashlib.sha256(root).digest()
        token = Invitation(NodeId(node), answer.secret, fingerprint, answer.endpoint, root_digest).token()
        parse_token(token)
        return InvitedNode(node, token, answer.expires_at.ToDatetime(UTC))

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

    async def reconcile_node(self, node: str) -> types_pb2.Node:
        """Admit a quarantined node whose store was restored from a backup.

        Raises:
            RemoteError: ``PENDING_SECOND``; another operator has to ask too.
        """
        request = wire.ReconcileNodeRequest(request_id=self._connection.request_id(), node=node)
        return (await self._connection.call(self._stub.ReconcileNode, request)).node

    async def revoke_node(self, node: str, *, reason: str) -> types_pb2.Node:
        """End the node's membership for good."""
        request = wire.RevokeNodeRequest(request_id=self._connection.request_id(), node=node, reason=reason)
        return (await self._connection.call(self._stub.RevokeNode, request)).node

    async def proposals(self) -> list[wire.Proposal]:
        """Return what waits for a second operator."""

        async def fetch(token: str) -> tuple[Sequence[wire.Proposal], str]:
            request = wire.ListProposalsRequest(page_size=MAX_PAGE, page_token=token)
            answer = await self._connection.call(self._stub.ListProposals, request)
            return answer.proposals, answer.next_page_token

        return await read_pages(fetch)

    async def withdraw(self, proposal_id: str) -> wire.Proposal:
        """Take back what waits for a second operator."""
        request = wire.WithdrawProposalRequest(request_id=self._connection.request_id(), proposal_id=proposal_id)
        return (await self._connection.call(self._stub.WithdrawProposal, request)).proposal

    async def publish_trust(self, files: RepositoryFiles) -> wire.PublishTrustResponse:
        """Give the coordinator the signed roots, targets metadata and targets; it verifies them as everybody does."""
        return await self._connection.upload(self._stub.PublishTrust, _publication(files))

    async def audit(self, *, limit: int) -> list[wire.AuditEntry]:
        """Return the newest ``limit`` entries of what operators did, newest first."""

        async def fetch(token: str) -> tuple[Sequence[wire.AuditEntry], str]:
            request = wire.ListAuditRequest(page_size=min(limit, MAX_PAGE), page_token=token)
            answer = await self._connection.call(self._stub.ListAudit, request)
            return answer.entries, answer.next_page_token

        return await read_pages(fetch, limit=limit)


def _publication(files: RepositoryFiles) -> Iterator[wire.PublishTrustRequest]:
    """Yield the files as messages; the roots and the targets metadata come after what they speak of."""
    contents = {f"{TARGETS_FOLDER}/{sha256}": data for sha256, data in files.targets.items()}
    contents |= {f"{METADATA_FOLDER}/{name}": data for name, data in files.metadata.items()}
    for name, data in contents.items():
        for start in range(0, max(len(data), 1), CHUNK_BYTES):
            yield wire.PublishTrustRequest(name=name if start == 0 else "", chunk=data[start : start + CHUNK_BYTES])
