"""A coordinator that an attacker has taken over whole, towards its nodes.

It has all that a breached coordinator has: both certificate authorities, the
keys of snapshot, timestamp and log, each envelope that it ever relayed, each
file that the trust repository ever had. It lacks what was never there: the
keys of root and targets, of people, and of nodes.

TLS, gRPC and the order of frames are real. What it says is the test's: any
frame, any answer, any file.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import uuid4

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import Message
from grpc_status import rpc_status

from coordinator.api.errors import status_of
from coordinator.ca.authority import Authority, Window, create_authority, issue_node, issue_server
from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import CHUNK_BYTES
from hansa.contract.outbox import Head
from hansa.runtime.channels import SERVER_OPTIONS
from hansa.v1 import node_service_pb2 as wire
from hansa.v1 import node_service_pb2_grpc, trust_service_pb2, trust_service_pb2_grpc
from node_agent.keys.credential import Credential
from node_agent.link.encoding import timestamp

M = TypeVar("M", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]

PATIENCE = 20.0
_NOBODYS_RUN = "0" * 32


def _now() -> datetime:
    return datetime.now(UTC)


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def frame(**kind: Any) -> wire.CoordinatorFrame:
    return wire.CoordinatorFrame(**kind)


@dataclass(frozen=True, slots=True)
class Upload:
    """What came by UploadSummary."""

    header: wire.UploadSummaryRequest.Header
    content: bytes


@dataclass
class Mirror:
    """The trust repository's files as the coordinator has them, by name."""

    files: dict[str, bytes] = field(default_factory=dict)

    def metadata(self, role: str, version: int) -> bytes | None:
        if role == "timestamp":
            return self.files.get("metadata/timestamp.json")
        versions = [self._version(name) for name in self.files if name.endswith(f".{role}.json")]
        return self.files.get(f"metadata/{version or max(versions, default=0)}.{role}.json")

    def target(self, sha256: bytes) -> bytes | None:
        return self.files.get(f"targets/{sha256.hex()}")

    def copy(self) -> Mirror:
        return Mirror(dict(self.files))

    @staticmethod
    def _version(name: str) -> int:
        return int(name.removeprefix("metadata/").split(".")[0])


@dataclass
class Session:
    """One attached stream."""

    epoch: int
    call: Context
    acks: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    # grpc.aio allows one write at a time.
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class EvilCoordinator(node_service_pb2_grpc.NodeServiceServicer, trust_service_pb2_grpc.TrustServiceServicer):
    """Answers as the fields say; ``bend`` changes the next answer of a kind, once."""

    federation: str
    server_ca: Authority = field(default_factory=lambda: create_authority("server CA", _now()))
    node_ca: Authority = field(default_factory=lambda: create_authority("node CA", _now()))
    mirror: Mirror = field(default_factory=Mirror)
    store_uuid: str = field(default_factory=lambda: str(uuid4()))
    generation: int = 1
    # What it says honestly of the time; the node's own clock, where a test moves that.
    clock: Callable[[], datetime] = _now
    # What the node has applied of our commands, and we of its events.
    cursor: Head = field(default_factory=Head)
    events: list[wire.EventBody] = field(default_factory=list)
    event_head: Head = field(default_factory=Head)
    uploads: list[Upload] = field(default_factory=list)
    # So many uploads are taken and never answered.
    lose_uploads: int = 0
    bend: dict[type[Message], Callable[[Any], Any]] = field(default_factory=dict)
    # How often each trust file was asked for; "timestamp" tells that a refresh has begun.
    asked: list[str] = field(default_factory=list)
    # What a failure to see a session is told with.
    explain: Callable[[], object] = lambda: ""
    port: int = 0
    epoch: int = 0
    _session: Session | None = None
    _attached: asyncio.Condition = field(default_factory=asyncio.Condition)

    # -- what the test does -------------------------------------------------

    async def session(self) -> Session:
        """Return the session that stands, once there is one."""
        try:
            async with asyncio.timeout(PATIENCE), self._attached:
                await self._attached.wait_for(lambda: self._session is not None and not self._session.ended.is_set())
        except TimeoutError:
            raise AssertionError(f"no session; last: {self.explain()}") from None
        assert self._session is not None
        return self._session

    @property
    def attached_epoch(self) -> int:
        """The epoch of the session that stands; 0 if none does."""
        return 0 if self._session is None or self._session.ended.is_set() else self._session.epoch

    async def command(self, body: wire.CommandBody) -> bool:
        """Send ``body`` as the next command; say whether the node took it (else it ended the session)."""
        session = await self.session()
        return await self.send(self.numbered(session, body))

    def numbered(self, session: Session, body: wire.CommandBody) -> wire.CoordinatorFrame:
        """Return the frame of the next command, rightly numbered and chained."""
        data = body.SerializeToString(deterministic=True)
        command = wire.Command(epoch=session.epoch, seq=self.cursor.seq + 1, prev_hash=self.cursor.hash, body=data)
        return frame(command=command)

    async def send(self, sent: wire.CoordinatorFrame) -> bool:
        """Send any frame; return once the node is done with it: True if the session stands.

        What is no command is followed by one that does nothing, for its
        acknowledgement says that the node has read the frame before it.
        """
        session = await self.session()
        await self._write(session, sent)
        taken = await self._acknowledged(session) if sent.WhichOneof("frame") == "command" else 0
        if sent.WhichOneof("frame") != "command":
            barrier = self.numbered(session, no_effect())
            await self._write(session, barrier)
            sent, taken = barrier, await self._acknowledged(session)
        if taken == sent.command.seq == self.cursor.seq + 1:
            self.cursor = self.cursor.after(sent.command.body)
        return taken >= 0

    async def hang_up(self) -> None:
        """End the session from here; return once it has ended."""
        session = await self.session()
        session.hung_up.set()
        await session.ended.wait()

    async def left(self) -> None:
        """Return once the node has gone: its next session is another."""
        if self._session is not None:
            async with asyncio.timeout(PATIENCE):
                await self._session.ended.wait()

    def credential(self, node: str) -> Credential:
        """Return a node's key and certificate: for an honest node, or for one that we invent."""
        key = ec.generate_private_key(ec.SECP256R1())
        return Credential(pem_of(key), self.certify(key.public_key(), node))

    def certify(self, key: ec.EllipticCurvePublicKey, node: str) -> bytes:
        window = Window(_now(), timedelta(days=1))
        certificate = issue_node(self.node_ca, key, federation=self.federation, node=node, window=window)
        return certificate.public_bytes(serialization.Encoding.PEM)

    # -- what the node calls ------------------------------------------------

    async def Connect(  # type: ignore[override]  # noqa: N802 - it writes by its context
        self, frames: AsyncIterator[wire.NodeFrame], context: Context
    ) -> None:
        session = Session(self._next_epoch(), context)
        reading: asyncio.Task[None] | None = None
        hanging_up: asyncio.Task[bool] | None = None
        try:
            assert (await anext(frames)).WhichOneof("frame") == "hello"
            await self._write(session, frame(welcome=self.welcome(session.epoch)), bent=True)
            proof = (await anext(frames)).head_proof
            self.cursor = Head(proof.command_cursor.seq, proof.command_cursor.hash)
            async with self._attached:
                self._session = session
                self._attached.notify_all()
            reading = asyncio.create_task(self._read(session, frames))
            hanging_up = asyncio.create_task(session.hung_up.wait())
            await asyncio.wait((reading, hanging_up), return_when=asyncio.FIRST_COMPLETED)
        except StopAsyncIteration:
            pass
        finally:
            for task in (reading, hanging_up):
                if task is not None:
                    task.cancel()
            session.ended.set()

    def welcome(self, epoch: int) -> wire.Welcome:
        """Return what an honest coordinator would say first."""
        return wire.Welcome(
            epoch=epoch,
            nonce=hashlib.sha256(str(epoch).encode()).digest(),
            store_uuid=self.store_uuid,
            generation=self.generation,
            event_cursor=wire.Head(seq=self.event_head.seq, hash=self.event_head.hash),
            # One more than is acknowledged: the node may have applied what we sent last.
            command_head=wire.Head(seq=self.cursor.seq + 1, hash=self.cursor.hash),
            heartbeat_seconds=1,
            wall=timestamp(self.clock()),
        )

    async def UploadSummary(  # noqa: N802
        self, requests: AsyncIterator[wire.UploadSummaryRequest], context: Context
    ) -> wire.UploadSummaryResponse:
        header = (await anext(requests)).header
        content = b"".join([part.chunk async for part in requests])
        self.uploads.append(Upload(header, content))
        if self.lose_uploads:
            self.lose_uploads -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
        return self._bent(wire.UploadSummaryResponse())

    async def RenewCertificate(  # noqa: N802
        self, request: wire.RenewCertificateRequest, context: Context
    ) -> wire.RenewCertificateResponse:
        peer = next(iter(context.auth_context()["x509_subject_alternative_name"])).decode()
        key = x509.load_pem_x509_csr(request.csr_pem.encode()).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        pem = self.certify(key, peer.rsplit("/", 1)[-1]).decode()
        return self._bent(wire.RenewCertificateResponse(certificate_pem=pem))

    async def GetMetadata(  # noqa: N802
        self, request: trust_service_pb2.GetMetadataRequest, context: Context
    ) -> AsyncIterator[trust_service_pb2.GetMetadataResponse]:
        self.asked.append(request.role)
        async for chunk in self._chunks(self.mirror.metadata(request.role, request.version), context):
            yield self._bent(trust_service_pb2.GetMetadataResponse(chunk=chunk))

    async def GetTarget(  # noqa: N802
        self, request: trust_service_pb2.GetTargetRequest, context: Context
    ) -> AsyncIterator[trust_service_pb2.GetTargetResponse]:
        self.asked.append(request.path)
        async for chunk in self._chunks(self.mirror.target(request.sha256), context):
            yield self._bent(trust_service_pb2.GetTargetResponse(chunk=chunk))

    async def _chunks(self, content: bytes | None, context: Context) -> AsyncIterator[bytes]:
        if content is None:
            await context.abort_with_status(rpc_status.to_status(status_of(HansaError(Reason.TRUST_UNKNOWN))))
            raise AssertionError("abort returned")
        for start in range(0, max(len(content), 1), CHUNK_BYTES):
            yield content[start : start + CHUNK_BYTES]

    async def _read(self, session: Session, frames: AsyncIterator[wire.NodeFrame]) -> None:
        async for received in frames:
            await self._receive(session, received)

    async def _receive(self, session: Session, received: wire.NodeFrame) -> None:
        kind = received.WhichOneof("frame")
        if kind == "event" and received.event.seq == self.event_head.seq + 1:
            self.event_head = self.event_head.after(received.event.body)
            self.events.append(wire.EventBody.FromString(received.event.body))
            ack = wire.EventAck(epoch=session.epoch, upto_seq=self.event_head.seq)
            await self._write(session, frame(event_ack=ack))
        elif kind == "command_ack":
            session.acks.put_nowait(received.command_ack.upto_seq)
        elif kind == "heartbeat":
            reply = wire.HeartbeatReply(echo_monotonic_ms=received.heartbeat.monotonic_ms)
            await self._write(session, frame(heartbeat_reply=reply))

    async def _write(self, session: Session, sent: wire.CoordinatorFrame, *, bent: bool = False) -> None:
        # The node may be gone already; then the session has ended, which is the answer.
        gone = (grpc.aio.BaseError, asyncio.InvalidStateError, grpc.RpcError)
        async with session.writing:
            with contextlib.suppress(*gone):
                await session.call.write(self._bent(sent) if bent else sent)

    async def _acknowledged(self, session: Session) -> int:
        """Return up to where the node acknowledged; -1 if it ended the session."""
        ack = asyncio.create_task(session.acks.get())
        end = asyncio.create_task(session.ended.wait())
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait((ack, end), return_when=asyncio.FIRST_COMPLETED)
            return ack.result() if ack.done() else -1
        finally:
            ack.cancel()
            end.cancel()

    def _bent(self, answer: M) -> M:
        change = self.bend.pop(type(answer), None)
        return answer if change is None else change(answer)

    def _next_epoch(self) -> int:
        self.epoch += 1
        return self.epoch


def no_effect() -> wire.CommandBody:
    """Return a command that changes nothing: the cancellation of a run that is not there."""
    return wire.CommandBody(cancel=wire.Cancel(run_id=_NOBODYS_RUN, attempt=1))


@asynccontextmanager
async def serving(evil: EvilCoordinator) -> AsyncIterator[EvilCoordinator]:
    """Serve ``evil`` on a free port of loopback, with mutual TLS."""
    key = ec.generate_private_key(ec.SECP256R1())
    window = Window(_now(), timedelta(days=1))
    leaf = issue_server(evil.server_ca, key.public_key(), names=["127.0.0.1"], window=window)
    chain = leaf.public_bytes(serialization.Encoding.PEM) + evil.server_ca.certificate_pem
    server = grpc.aio.server(options=list(SERVER_OPTIONS))
    node_service_pb2_grpc.add_NodeServiceServicer_to_server(evil, server)
    trust_service_pb2_grpc.add_TrustServiceServicer_to_server(evil, server)
    credentials = grpc.ssl_server_credentials(
        [(pem_of(key), chain)], root_certificates=evil.node_ca.certificate_pem, require_client_auth=True
    )
    evil.port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield evil
    finally:
        await server.stop(None)
