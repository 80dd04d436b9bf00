"""A whole coordinator in this process, with its three TLS listeners on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from coordinator.bootstrap import Foundation, open_foundation, run_coordinator
from coordinator.config import make_config
from coordinator.founding import Founding, found
from coordinator.trust_keys import TrustKeys
from hansa.contract.directory import COORDINATOR
from hansa.contract.enrolment import Invitation, parse_token
from hansa.contract.errors import DOMAIN, Reason
from hansa.contract.ids import NodeId
from hansa.contract.limits import CHUNK_BYTES
from hansa.runtime.channels import CLIENT_OPTIONS
from hansa.runtime.clock import utc_now
from hansa.sdk.tokens import mint
from hansa.trust.files import RepositoryFiles
from hansa.v1 import admin_service_pb2, enrolment_service_pb2, trust_service_pb2
from hansa.v1.admin_service_pb2_grpc import AdminServiceStub
from hansa.v1.catalogue_service_pb2_grpc import CatalogueServiceStub
from hansa.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from hansa.v1.node_service_pb2_grpc import NodeServiceStub
from tests.support.job_world import job_trust
from tests.support.trust_world import TrustWorld

FEDERATION = "demo"
# Two federation operators, a researcher and an auditor of the trust world.
OLGA, OSCAR, RITA, AUDITOR = "op1", "op2", "ada", "aud"
NODES = ("FI", "ES", "IT")
CALL_SECONDS = 20.0


class ShiftedClock:
    """The wall clock, moved by what a test says: TLS itself keeps to the true time."""

    def __init__(self) -> None:
        self.shift = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self.shift


@dataclass
class NodeKey:
    """A node's key, and the certificate it was given."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    certificate_pem: str = ""
    fingerprint: str = ""

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate_pem.encode())

    def csr(self) -> str:
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return request.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@dataclass
class LiveCoordinator:
    """What a test may know and do. Channels are closed with the coordinator."""

    foundation: Foundation
    clock: ShiftedClock
    trust: TrustWorld
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def keys(self) -> Mapping[str, Ed25519PrivateKey]:
        return self.trust.keys

    @property
    def root(self) -> bytes:
        return self.foundation.keys.server_ca.certificate_pem

    def address(self, port: str) -> str:
        return f"127.0.0.1:{getattr(self.foundation.config, f'{port}_port')}"

    def channel(self, port: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
        """Return a channel to a listener: ``people``, ``enrolment`` or ``node``."""
        # Channels of equal options would share one connection.
        options = [*CLIENT_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        credentials = credentials or grpc.ssl_channel_credentials(self.root)
        channel = grpc.aio.secure_channel(self.address(port), credentials, options=options)
        self.channels.append(channel)
        return channel

    def token(self, person: str, *, key: Ed25519PrivateKey | None = None, federation: str = FEDERATION) -> str:
        return mint(person, federation, key or self.keys[person], now=utc_now(), jti=uuid4().hex)

    def bearer(self, person: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token(person)}"),)

    async def admin(self, method: str, request: Any, person: str = OLGA) -> Any:
        """Call a method of AdminService."""
        call = getattr(AdminServiceStub(self.people), method)
        return await call(request, metadata=self.bearer(person), timeout=CALL_SECONDS)

    async def catalogue(self, method: str, request: Any, person: str = OLGA) -> Any:
        """Call a method of CatalogueService."""
        call = getattr(CatalogueServiceStub(self.people), method)
        return await call(request, metadata=self.bearer(person), timeout=CALL_SECONDS)

    @property
    def people(self) -> grpc.aio.Channel:
        return self.channels[0]

    async def two(self, method: str, request: Any) -> Any:
        """Call a method of AdminService that takes two operators; return the second's answer."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.admin(method, request)
        if reason_of(caught.value) is not Reason.PENDING_SECOND:
            raise caught.value
        return await self.admin(method, request, OSCAR)

    async def invite(self, node: str = "FI", request_id: str = "", valid_seconds: int = 0) -> str:
        """Return a token as the operator's client makes it."""
        request = admin_service_pb2.InviteNodeRequest(
            request_id=request_id or uuid4().hex, node=node, valid_seconds=valid_seconds
        )
        answer = await self.two("InviteNode", request)
        fingerprint = self.foundation.keys.server_ca.fingerprint
        return Invitation(NodeId(node), answer.secret, fingerprint, answer.endpoint, self.root_digest).token()

    @property
    def root_digest(self) -> bytes:
        return hashlib.sha256(self.trust.root).digest()

    async def publish(self, person: str = OLGA) -> Any:
        """Put in force what the trust world has published."""
        return await self.publish_files(self.trust.files, person)

    async def publish_files(self, files: RepositoryFiles, person: str = OLGA) -> Any:
        """Call PublishTrust with all files that a signer may publish."""
        parts = {
            **{f"metadata/{name}": data for name, data in files.metadata.items() if name.count(".") == 2},
            **{f"targets/{sha256}": data for sha256, data in files.targets.items()},
        }
        messages = [
            admin_service_pb2.PublishTrustRequest(name="" if start else name, chunk=data[start : start + CHUNK_BYTES])
            for name, data in parts.items()
            if "snapshot" not in name
            for start in range(0, max(len(data), 1), CHUNK_BYTES)
        ]
        stub = AdminServiceStub(self.people)
        return await stub.PublishTrust(iter(messages), metadata=self.bearer(person), timeout=CALL_SECONDS)

    async def fetch(self, stub: Any, role: str, version: int = 0) -> bytes:
        """Return a role's metadata as TrustService sends it to the caller of ``stub``."""
        request = trust_service_pb2.GetMetadataRequest(role=role, version=version)
        return b"".join([answer.chunk async for answer in stub.GetMetadata(request, timeout=CALL_SECONDS)])

    async def enrol(self, token: str, node_key: NodeKey) -> NodeKey:
        """Enrol with ``token``; fill and return ``node_key``."""
        stub = EnrolmentServiceStub(self.channel("enrolment"))
        invitation = parse_token(token)
        request = enrolment_service_pb2.EnrolRequest(
            token_secret=invitation.secret, csr_pem=node_key.csr(), trust_root_digest=invitation.trust_root_digest
        )
        answer = await stub.Enrol(request, timeout=CALL_SECONDS)
        node_key.certificate_pem, node_key.fingerprint = answer.certificate_pem, answer.key_fingerprint
        return node_key

    async def confirm(self, node: str, fingerprint: str) -> None:
        request = admin_service_pb2.ConfirmNodeRequest(request_id=uuid4().hex, node=node, key_fingerprint=fingerprint)
        await self.admin("ConfirmNode", request)

    async def join(self, node: str = "FI") -> NodeKey:
        """Return the key of a node that was invited, enrolled and confirmed."""
        node_key = await self.enrol(await self.invite(node), NodeKey())
        await self.confirm(node, node_key.fingerprint)
        return node_key

    def node(self, node_key: NodeKey) -> Any:
        """Return a stub of NodeService on a connection of its own."""
        chain = node_key.certificate_pem.encode()
        return NodeServiceStub(self.channel("node", grpc.ssl_channel_credentials(self.root, node_key.key_pem, chain)))


def trust_keys(trust: TrustWorld) -> TrustKeys:
    """Return the keys of ``trust`` that a coordinator has."""
    return TrustKeys(trust.online, trust.keys[COORDINATOR])


@asynccontextmanager
async def live_coordinator(state_dir: Path, database: str = "") -> AsyncIterator[LiveCoordinator]:
    """Run a coordinator whose people, nodes and analysis are those of ``job_trust``."""
    people, enrolment, node = free_ports(3)
    config = make_config(
        federation=FEDERATION,
        people_port=people,
        enrolment_port=enrolment,
        node_port=node,
        database=database,
        reserve_mib=1,
        free_mib=2,
    )
    clock = ShiftedClock()
    trust = job_trust(clock(), NODES)
    found(Founding(state_dir, config, trust.files, trust_keys(trust)), store_uuid=str(uuid4()), now=clock())
    foundation = open_foundation(state_dir, clock)
    stop = asyncio.Event()
    server = asyncio.create_task(run_coordinator(foundation, stop))
    live = LiveCoordinator(foundation, clock, trust)
    try:
        async with asyncio.timeout(CALL_SECONDS):
            await live.channel("people").channel_ready()
        yield live
    finally:
        for channel in live.channels:
            await channel.close()
        stop.set()
        await server
        foundation.database.close()


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def reason_of(error: grpc.aio.AioRpcError) -> Reason | None:
    """Return the reason in the error's ErrorInfo, if it is one of ours."""
    info = info_of(error)
    return None if info is None else Reason(info.reason)


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    """Return the error's ErrorInfo."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # the stubs know the synchronous call only
    for detail in () if status is None else status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            return info
    return None
