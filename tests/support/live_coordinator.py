"""A whole coordinator in this process, with its three TLS listeners on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from coordinator.bootstrap import Foundation, open_foundation, run_coordinator
from coordinator.config import make_config
from coordinator.founding import Founding, found
from coordinator.services.people import OPERATOR, RESEARCHER, add_person, make_person
from hansa.contract.enrolment import parse_token
from hansa.contract.errors import DOMAIN, Reason
from hansa.runtime.channels import CLIENT_OPTIONS
from hansa.runtime.clock import utc_now
from hansa.sdk.tokens import mint
from hansa.v1 import admin_service_pb2, enrolment_service_pb2
from hansa.v1.admin_service_pb2_grpc import AdminServiceStub
from hansa.v1.catalogue_service_pb2_grpc import CatalogueServiceStub
from hansa.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from hansa.v1.node_service_pb2_grpc import NodeServiceStub
from tests.support.people import public_pem

FEDERATION = "demo"
OLGA, RITA = "olga", "rita"
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
    keys: dict[str, Ed25519PrivateKey]
    channels: list[grpc.aio.Channel] = field(default_factory=list)

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

    async def invite(self, node: str = "FI", request_id: str = "", valid_seconds: int = 0) -> str:
        request = admin_service_pb2.InviteNodeRequest(
            request_id=request_id or uuid4().hex, node=node, valid_seconds=valid_seconds
        )
        return str((await self.admin("InviteNode", request)).token)

    async def enrol(self, token: str, node_key: NodeKey) -> NodeKey:
        """Enrol with ``token``; fill and return ``node_key``."""
        stub = EnrolmentServiceStub(self.channel("enrolment"))
        request = enrolment_service_pb2.EnrolRequest(token_secret=parse_token(token).secret, csr_pem=node_key.csr())
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


@asynccontextmanager
async def live_coordinator(state_dir: Path, database: str = "") -> AsyncIterator[LiveCoordinator]:
    """Run a coordinator with the operator olga and the researcher rita."""
    keys = {OLGA: Ed25519PrivateKey.generate(), RITA: Ed25519PrivateKey.generate()}
    people, enrolment, node = free_ports(3)
    config = make_config(
        federation=FEDERATION, people_port=people, enrolment_port=enrolment, node_port=node, database=database
    )
    clock = ShiftedClock()
    olga = make_person(OLGA, OPERATOR, public_pem(keys[OLGA]))
    found(Founding(state_dir, config, olga), store_uuid=str(uuid4()), now=clock())
    foundation = open_foundation(state_dir, clock)
    rita = make_person(RITA, RESEARCHER, public_pem(keys[RITA]))
    foundation.database.run_sync(lambda session: add_person(session, rita, actor=OLGA, now=clock()))
    stop = asyncio.Event()
    server = asyncio.create_task(run_coordinator(foundation, stop))
    live = LiveCoordinator(foundation, clock, keys)
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
