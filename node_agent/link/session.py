"""One session with the coordinator: attach, then stream both ways.

The stream is a doorbell and a pipe, never the truth: what it carries is in the
store before it is sent, and what it brings is in the store before it is
acknowledged. Losing it loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from typing import Any, Final

import structlog

from hansa.contract.attach import check_epoch
from hansa.contract.delivery import Sender
from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import EVENT_WINDOW, PROTOCOL_VERSION, SESSION_SILENCE
from hansa.contract.outbox import Head
from hansa.runtime.clock import Clock
from hansa.runtime.logging import remember
from hansa.runtime.supervisor import until_first_ends
from hansa.v1 import node_service_pb2, node_service_pb2_grpc, types_pb2
from node_agent.audit.witness import LogWitness, Told
from node_agent.link.attaching import answer_welcome
from node_agent.link.clock_watch import ClockWatch
from node_agent.link.commands import Commands, Wishes, directory_wanted, is_offer
from node_agent.link.encoding import head_of, log_news_of, moment, put_log_news, timestamp
from node_agent.reporting import Acknowledged, Bells, Reporter
from node_agent.store.database import Database
from node_agent.store.outbox import events_after, keep_acked, store_row
from node_agent.trust.keeper import TrustKeeper

_log = structlog.get_logger(__name__)
_CAPABILITIES: Final = ("summary.v1",)
_ATTACH_SECONDS: Final = 10.0
# Between two heartbeats, however much there is to tell.
_SHORTEST_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True)
class Attached:
    """Where both sides stand once the heads have been compared."""

    epoch: int
    event_cursor: Head
    heartbeat_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionParts:
    """What a session works with; the same for each session of an agent."""

    database: Database
    commands: Commands
    trust: TrustKeeper
    wishes: Wishes
    bells: Bells
    reporter: Reporter
    clock: Clock
    instance_id: str
    policy_digest: Callable[[], bytes]
    # Returns the free slots and the active runs.
    load: Callable[[], Awaitable[tuple[int, int]]]
    # Without one, heartbeats say nothing of the logs.
    witness: LogWitness | None = None
    # Whether an offer may be taken in; what is not acknowledged comes again in the next session.
    has_room: Callable[[], bool] = lambda: True
    # What the node says of itself: names of Node.Condition.
    conditions: Callable[[], Sequence[str]] = tuple
    watch: ClockWatch = field(default_factory=ClockWatch)
    acknowledged: Acknowledged = field(default_factory=Acknowledged)


class Session:
    """A session; made anew for each stream."""

    def __init__(self, parts: SessionParts, stub: node_service_pb2_grpc.NodeServiceAsyncStub) -> None:
        """Take the parts and a stub of the coordinator's NodeService."""
        self._parts = parts
        self._stub = stub
        self._writing = asyncio.Lock()
        self._sender = Sender(0, EVENT_WINDOW)
        self._room = asyncio.Event()
        self._told = Told()
        self._beat_now = asyncio.Event()
        self._holding = False

    async def run(self, attached: asyncio.Event) -> None:
        """Attach, set ``attached``, and stream until the stream ends.

        Raises:
            grpc.aio.AioRpcError: the stream broke or was refused.
            HansaError: the coordinator's frames do not fit; or it was silent.
        """
        async with self._stream() as call:
            place = await self._attach(call)
            self._parts.wishes.draining = False
            self._parts.acknowledged.upto = place.event_cursor.seq
            self._sender = Sender(place.event_cursor.seq, EVENT_WINDOW)
            attached.set()
            await until_first_ends(self._read(call, place), self._send_events(call, place), self._beat(call, place))

    @asynccontextmanager
    async def _stream(self) -> AsyncIterator[Any]:
        call = self._stub.Connect()
        try:
            yield call
        finally:
            call.cancel()

    async def _attach(self, call: Any) -> Attached:
        async with asyncio.timeout(_ATTACH_SECONDS):
            asked = time.monotonic()
            await self._write(call, hello=await self._hello())
            welcome = (await self._next(call)).welcome
            if not welcome.epoch:
                raise HansaError(Reason.PROTOCOL_VIOLATION, log="no welcome")
            # Before any command comes: what is offered is judged by a clock that was compared.
            self._compare(welcome, time.monotonic() - asked)
            reporter, now = self._parts.reporter, self._parts.clock()
            proof = await self._parts.database.run(lambda session: answer_welcome(session, welcome, reporter, now))
            await self._write(call, head_proof=proof)
        remember(epoch=welcome.epoch)
        _log.info("attached", event_cursor=welcome.event_cursor.seq)
        return Attached(welcome.epoch, head_of(welcome.event_cursor), float(welcome.heartbeat_seconds or 5))

    async def _hello(self) -> node_service_pb2.Hello:
        row = await self._parts.database.run(store_row)
        return node_service_pb2.Hello(
            protocol=PROTOCOL_VERSION,
            instance_id=self._parts.instance_id,
            store_uuid=row.store_uuid,
            generation=row.generation,
            software_version=version("hansa"),
            capabilities=_CAPABILITIES,
        )

    async def _write(self, call: Any, **frame: Any) -> None:
        # grpc.aio allows one write at a time.
        async with self._writing:
            try:
                await call.write(node_service_pb2.NodeFrame(**frame))
            except asyncio.InvalidStateError as error:
                # The stream ended before we wrote; reading says why, as an AioRpcError.
                await call.read()
                raise HansaError(Reason.COORDINATOR_UNREACHABLE, log="the stream ended") from error

    async def _next(self, call: Any) -> node_service_pb2.CoordinatorFrame:
        frame = await call.read()
        if not isinstance(frame, node_service_pb2.CoordinatorFrame):
            # The stream ended well: any other status is raised by reading.
            raise HansaError(Reason.COORDINATOR_UNREACHABLE, log="the stream ended")
        return frame

    async def _read(self, call: Any, place: Attached) -> None:
        while True:
            try:
                async with asyncio.timeout(SESSION_SILENCE.total_seconds()):
                    frame = await self._next(call)
            except TimeoutError:
                raise HansaError(Reason.COORDINATOR_UNREACHABLE, log="silence") from None
            await self._handle(call, place, frame)

    async def _handle(self, call: Any, place: Attached, frame: node_service_pb2.CoordinatorFrame) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "command":
            await self._apply(call, place, frame.command)
        elif kind == "event_ack":
            await self._acknowledged(place, frame.event_ack)
        elif kind == "fenced":
            raise HansaError(_fence_reason(frame.fenced.reason), log=f"by epoch {frame.fenced.by_epoch}")
        elif kind == "heartbeat_reply":
            await self._hear(frame.heartbeat_reply)
        else:
            raise HansaError(Reason.PROTOCOL_VIOLATION, log=f"unexpected frame {kind}")

    def _compare(self, told: node_service_pb2.Welcome | node_service_pb2.HeartbeatReply, delay_seconds: float) -> None:
        """Compare the clocks, if the coordinator has told the time."""
        if told.HasField("wall"):
            self._parts.watch.compare(
                self._parts.clock(), moment(told.wall), timedelta(seconds=max(delay_seconds, 0.0))
            )

    async def _hear(self, reply: node_service_pb2.HeartbeatReply) -> None:
        self._compare(reply, time.monotonic() - reply.echo_monotonic_ms / 1000)
        witness = self._parts.witness
        if witness is None:
            return
        news = log_news_of(reply)
        try:
            goes_on = await witness.hear(news, self._told)
        except HansaError as error:
            if error.reason is not Reason.STORE_FULL or witness.alarm():
                # An alarm that cannot be written down ends the session, and is raised again in the next.
                raise
            # It is told again from the beginning; what has ended here is still to be told now.
            _log.warning("log_news_held", reason=Reason.STORE_FULL.value)
            self._told, goes_on = Told(), False
        if goes_on:
            # Others wait for our cosignature, or there are more proofs.
            self._beat_now.set()
        # A cosignature on our log brings out proofs of releases.
        self._parts.bells.events.set()

    async def _acknowledged(self, place: Attached, ack: node_service_pb2.EventAck) -> None:
        check_epoch(ack.epoch, place.epoch)
        if self._sender.acknowledged(ack.upto_seq):
            self._parts.acknowledged.upto = ack.upto_seq
            # A coordinator that knows less later has forgotten something; and only what it knows is ever pruned.
            await self._keep_acked(ack.upto_seq)
        self._room.set()

    async def _keep_acked(self, upto_seq: int) -> None:
        try:
            await self._parts.database.run(lambda session: keep_acked(session, upto_seq))
        except HansaError as error:
            # It is told again at the next attach; what has ended here is still to be told now.
            if error.reason is not Reason.STORE_FULL:
                raise

    async def _apply(self, call: Any, place: Attached, command: node_service_pb2.Command) -> None:
        check_epoch(command.epoch, place.epoch)
        if not self._takes(command):
            return
        # The job may be of a directory that was published a moment ago.
        await self._parts.trust.reach(directory_wanted(command))
        now = self._parts.clock()
        commands = self._parts.commands
        try:
            applied = await self._parts.database.run(lambda session: commands.apply(session, command, now))
        except HansaError as error:
            if error.reason is Reason.STORE_FULL:
                self._hold(command)
                return
            raise
        self._parts.bells.ring()
        if applied.renew:
            self._parts.wishes.renew.set()
        if applied.drain:
            self._parts.wishes.draining = True
        if applied.trust:
            self._parts.trust.tell()
        ack = node_service_pb2.CommandAck(epoch=place.epoch, upto_seq=applied.upto_seq)
        await self._write(call, command_ack=ack)

    def _takes(self, command: node_service_pb2.Command) -> bool:
        """Say whether the command may be applied now; one that may not is held, and all that follow it."""
        if not self._holding and not self._parts.has_room() and is_offer(command):
            self._hold(command)
        return not self._holding

    def _hold(self, command: node_service_pb2.Command) -> None:
        """Leave the command unacknowledged. The session goes on: what has ended here is still told."""
        _log.warning("command_held", seq=command.seq, reason=Reason.STORE_FULL.value)
        self._holding = True

    async def _send_events(self, call: Any, place: Attached) -> None:
        while True:
            self._parts.bells.events.clear()
            room = self._sender.room
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            after = self._sender.after
            events = await self._parts.database.run(lambda session: events_after(session, after, room))  # noqa: B023
            for stored in events:
                event = node_service_pb2.Event(
                    epoch=place.epoch, seq=stored.seq, prev_hash=stored.prev_hash, body=stored.body
                )
                # First the number: the acknowledgement may come while we write.
                self._sender.sending(stored.seq)
                await self._write(call, event=event)
                # What is told is in the log too, which the coordinator is to witness soon.
                self._beat_now.set()
            if not events:
                await self._parts.bells.events.wait()

    async def _beat(self, call: Any, place: Attached) -> None:
        while True:
            if self._holding and self._parts.has_room():
                # The coordinator sends again what was not acknowledged, in a new session.
                raise HansaError(Reason.STORE_FULL, log="there is room again for what was held")
            free, active = await self._parts.load()
            beat = node_service_pb2.Heartbeat(
                epoch=place.epoch,
                monotonic_ms=time.monotonic_ns() // 1_000_000,
                wall=timestamp(self._parts.clock()),
                free_slots=free,
                active_runs=active,
                policy_digest=self._parts.policy_digest(),
                conditions=[types_pb2.Node.Condition.Value(one) for one in self._parts.conditions()],
            )
            if self._parts.witness is not None:
                put_log_news(beat, await self._parts.witness.news(self._told))
            await self._write(call, heartbeat=beat)
            await self._until_next_beat(place)

    async def _until_next_beat(self, place: Attached) -> None:
        """Wait for the next beat; where there is news of the logs, a short time only."""
        pause = min(_SHORTEST_PAUSE, place.heartbeat_seconds)
        await asyncio.sleep(pause)
        with suppress(TimeoutError):
            async with asyncio.timeout(place.heartbeat_seconds - pause):
                await self._beat_now.wait()
        self._beat_now.clear()


def _fence_reason(text: str) -> Reason:
    return Reason(text) if text in Reason.__members__ else Reason.EPOCH_FENCED
