"""A scripted node: in this process with plain frames, or on a real stream.

It keeps its own outbox and command cursor, as a real node does, and does only
what the test tells it to.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import grpc

from coordinator.api.frames import coordinator_frame, envelope_message, node_frame
from coordinator.domain import frames as plain
from coordinator.services.sessions import NodeSession, Sessions
from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId, run_id
from hansa.contract.outbox import Head
from hansa.contract.statement import parse_statement
from hansa.v1 import node_service_pb2 as wire
from hansa.v1 import types_pb2
from tests.support.live_coordinator import reason_of


@dataclass
class Outbox:
    """A node's event outbox: bodies, and the head after each."""

    bodies: list[bytes] = field(default_factory=list)
    heads: list[Head] = field(default_factory=lambda: [Head()])

    @property
    def head(self) -> Head:
        return self.heads[-1]

    def append(self, body: wire.EventBody) -> int:
        data = body.SerializeToString(deterministic=True)
        self.bodies.append(data)
        self.heads.append(self.head.after(data))
        return self.head.seq

    def event(self, seq: int, epoch: int) -> wire.Event:
        return wire.Event(epoch=epoch, seq=seq, prev_hash=self.heads[seq - 1].hash, body=self.bodies[seq - 1])

    def hash_at(self, seq: int) -> bytes:
        return self.heads[seq].hash if seq < len(self.heads) else b""


@dataclass
class NodeStore:
    """What a node keeps between its sessions."""

    uuid: str = "store-1"
    generation: int = 1
    events: Outbox = field(default_factory=Outbox)
    command_cursor: Head = field(default_factory=Head)
    commands: list[wire.CommandBody] = field(default_factory=list)

    def hello(self, protocol: int = 1) -> wire.NodeFrame:
        hello = wire.Hello(
            protocol=protocol, instance_id="i", store_uuid=self.uuid, generation=self.generation, software_version="1"
        )
        return wire.NodeFrame(hello=hello)

    def proof(self, welcome: wire.Welcome, *, nonce: bytes | None = None) -> wire.NodeFrame:
        def head(place: Head) -> wire.Head:
            return wire.Head(seq=place.seq, hash=place.hash)

        proof = wire.HeadProof(
            epoch=welcome.epoch,
            nonce=welcome.nonce if nonce is None else nonce,
            event_head=head(self.events.head),
            hash_at_event_cursor=self.events.hash_at(welcome.event_cursor.seq),
            command_cursor=head(self.command_cursor),
        )
        return wire.NodeFrame(head_proof=proof)

    def apply(self, command: wire.Command) -> wire.CommandBody:
        assert command.prev_hash == self.command_cursor.hash, "the coordinator's chain is broken"
        self.command_cursor = self.command_cursor.after(command.body)
        assert self.command_cursor.seq == command.seq
        body = wire.CommandBody.FromString(command.body)
        self.commands.append(body)
        return body


def report(run: str, state: str, **fields: object) -> wire.EventBody:
    """Return the event that a run has come to ``state``."""
    reported = wire.RunReported(
        run_id=run,
        attempt=1,
        state=types_pb2.Run.State.Value(state),
        **fields,  # type: ignore[arg-type]
    )
    return wire.EventBody(run_reported=reported)


def release(statement: Signed, content: bytes, **changes: Any) -> wire.EventBody:
    """Return the event that ``content`` was released, with the statement of it; ``changes`` replace fields."""
    predicate = parse_statement(statement.payload).predicate
    values: dict[str, Any] = {
        "run_id": predicate.run_id,
        "attempt": predicate.attempt,
        "execution": predicate.execution,
        "summary_digest": hashlib.sha256(content).digest(),
        "summary_size": len(content),
        "statement": envelope_message(statement),
    }
    released = wire.SummaryReleased(**{**values, **changes})
    return wire.EventBody(summary_released=released)


def inventory(*datasets: tuple[str, str, str, str]) -> wire.EventBody:
    """Return the event of an inventory of (id, node, build, snapshot)."""
    return wire.EventBody(
        inventory_reported=wire.InventoryReported(
            datasets=[types_pb2.Dataset(dataset_id=i, node=n, build=b, snapshot=s) for i, n, b, s in datasets]
        )
    )


class ScriptedNode:
    """One session of a node that does what the test says, over whatever carries its frames."""

    def __init__(self, store: NodeStore) -> None:
        self.store = store
        self.epoch = 0
        self.fault: Reason | None = None
        self.down: asyncio.Queue[wire.CoordinatorFrame] = asyncio.Queue()

    async def send(self, frame: wire.NodeFrame) -> None:
        raise NotImplementedError

    async def receive(self, kind: str) -> wire.CoordinatorFrame:
        """Return the next frame, which must be of ``kind``."""
        async with asyncio.timeout(20):
            frame = await self.down.get()
        assert frame.WhichOneof("frame") == kind, frame
        return frame

    async def attach(self) -> wire.Welcome:
        """Say hello, prove the heads, and return the welcome."""
        await self.send(self.store.hello())
        welcome = (await self.receive("welcome")).welcome
        self.epoch = welcome.epoch
        await self.send(self.store.proof(welcome))
        return welcome

    async def heartbeat(self) -> wire.HeartbeatReply:
        """Beat, and return the reply: the session streams."""
        await self.send(wire.NodeFrame(heartbeat=wire.Heartbeat(epoch=self.epoch, monotonic_ms=7)))
        return (await self.receive("heartbeat_reply")).heartbeat_reply

    async def tell(self, *bodies: wire.EventBody) -> int:
        """Append events, send them, and return the sequence number acknowledged for all."""
        seqs = [self.store.events.append(body) for body in bodies]
        return await self.resend(seqs)

    async def resend(self, seqs: Sequence[int]) -> int:
        for seq in seqs:
            await self.send(wire.NodeFrame(event=self.store.events.event(seq, self.epoch)))
        upto = 0
        while upto < seqs[-1]:
            upto = (await self.receive("event_ack")).event_ack.upto_seq
        return upto

    async def take_command(self) -> wire.CommandBody:
        """Receive the next command, apply it, acknowledge it."""
        command = (await self.receive("command")).command
        body = self.store.apply(command)
        await self.send(
            wire.NodeFrame(command_ack=wire.CommandAck(epoch=self.epoch, upto_seq=self.store.command_cursor.seq))
        )
        return body


class PlainNode(ScriptedNode):
    """A scripted node that speaks to a session in this process, without gRPC."""

    def __init__(self, sessions: Sessions, node: str, store: NodeStore, not_after: datetime | None = None) -> None:
        super().__init__(store)
        self._up: asyncio.Queue[plain.NodeFrame | None] = asyncio.Queue()
        self.session: NodeSession = sessions.open(NodeId(node), self._frames(), not_after=not_after)
        self._reader = asyncio.create_task(self._read())

    async def _frames(self) -> AsyncIterator[plain.NodeFrame]:
        while (frame := await self._up.get()) is not None:
            yield frame

    async def _read(self) -> None:
        try:
            async for frame in self.session.outgoing():
                await self.down.put(coordinator_frame(frame))
        except HansaError as error:
            self.fault = error.reason

    async def send(self, frame: wire.NodeFrame) -> None:
        await self._up.put(node_frame(frame))

    async def hang_up(self) -> None:
        """End the stream from the node's side, and wait for its end."""
        await self._up.put(None)
        await self.ended()

    async def ended(self) -> Reason | None:
        """Wait until the session is over; return why, if the node was told."""
        async with asyncio.timeout(20):
            await self._reader
            await self.session.ended()
        return self.fault


class WireNode(ScriptedNode):
    """A scripted node on a real stream of NodeService."""

    def __init__(self, stub: Any, store: NodeStore) -> None:
        super().__init__(store)
        self.stub = stub
        self._call = stub.Connect()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for frame in self._call:
                await self.down.put(frame)
        except grpc.aio.AioRpcError as error:
            self.fault = reason_of(error)

    async def send(self, frame: wire.NodeFrame) -> None:
        await self._call.write(frame)

    async def upload(self, run: str, content: bytes, *, digest: bytes | None = None, chunk_bytes: int = 100) -> None:
        """Upload a summary in small chunks."""

        def parts() -> Iterator[wire.UploadSummaryRequest]:
            header = wire.UploadSummaryRequest.Header(
                run_id=run,
                attempt=1,
                execution=1,
                digest=digest or hashlib.sha256(content).digest(),
                size=len(content),
            )
            yield wire.UploadSummaryRequest(header=header)
            for start in range(0, len(content), chunk_bytes):
                yield wire.UploadSummaryRequest(chunk=content[start : start + chunk_bytes])

        await self.stub.UploadSummary(parts(), timeout=20)

    async def hang_up(self) -> None:
        """End the stream from the node's side, and wait for its end."""
        await self._call.done_writing()
        await self.ended()

    def vanish(self) -> None:
        """Cancel the stream, as a broken connection does."""
        self._reader.cancel()
        self._call.cancel()

    async def ended(self) -> Reason | None:
        """Wait until the stream is over; return why, if the node was told."""
        async with asyncio.timeout(20):
            await self._reader
        return self.fault


def run_at(job: str, node: str) -> str:
    """Return the id of the job's run at ``node``."""
    return run_id(job, node, 1)
