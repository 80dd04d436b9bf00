"""Nodes' sessions: one stream each, many batches of frames, no state of their own.

A session ends when its stream ends, when the node is silent, when a newer
session of the node opens, when an operator cuts it, or when its certificate
expires. Whatever was not acknowledged comes again in the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import structlog

from coordinator.domain.frames import (
    CommandAck,
    CommandFrame,
    CoordinatorFrame,
    Event,
    EventAck,
    Fenced,
    HeadProof,
    Heartbeat,
    HeartbeatReply,
    Hello,
    NodeFrame,
    Welcome,
)
from coordinator.services.attachment import Standing, connect, disconnect, disconnect_all, greet
from coordinator.services.desk import Changed, Desk
from coordinator.services.reports import Batch, apply_batch
from coordinator.services.witnessing import Heard, LogKeeper, exchange
from coordinator.store.outboxes import CommandRepository
from coordinator.store.sessions import SessionRepository
from hansa.contract.attach import check_epoch
from hansa.contract.delivery import Sender
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId
from hansa.contract.limits import CLOCK_TOLERANCE, COMMAND_WINDOW, EVENT_WINDOW, SESSION_SILENCE
from hansa.contract.notes import parse_note
from hansa.contract.witnessing import NO_NEWS, LogNews
from hansa.runtime.logging import remember
from hansa.runtime.supervisor import until_first_ends

_log = structlog.get_logger(__name__)

F = TypeVar("F", bound=NodeFrame)

_CLOCK_CHANGE_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a session waits: for the attach, for any frame, for the last one to be read."""

    attach: timedelta = timedelta(seconds=10)
    silence: timedelta = SESSION_SILENCE
    farewell: timedelta = timedelta(seconds=0.5)


class Sessions:
    """All open sessions of this process, at most one per node that stands."""

    def __init__(
        self,
        desk: Desk,
        nonce: Callable[[], bytes],
        patience: Patience | None = None,
        keeper: LogKeeper | None = None,
    ) -> None:
        """Take what sessions work with.

        Args:
            desk: runs transactions.
            nonce: makes a fresh nonce of 32 bytes.
            patience: how long to wait.
            keeper: of the audit log; without one, heartbeats say nothing of logs.
        """
        self.desk = desk
        self.keeper = keeper
        self.nonce = nonce
        self.patience = patience or Patience()
        self._open: dict[NodeId, set[NodeSession]] = {}

    async def begin(self) -> None:
        """Forget what an earlier process knew of connections; before anything is served."""
        turn = self.desk.turn()
        await self.desk.commit(lambda session: disconnect_all(session, turn))

    def open(self, node: NodeId, frames: AsyncIterator[NodeFrame], *, not_after: datetime | None) -> NodeSession:
        """Return a new session that reads ``frames``; it runs until it ends by itself.

        Args:
            node: who speaks, as the certificate says.
            frames: what the node sends.
            not_after: the end of the certificate.
        """
        session = NodeSession(self, node, frames)
        self._open.setdefault(node, set()).add(session)
        session.start(not_after)
        return session

    def cut(self, node: str, reason: Reason) -> None:
        """End every session of the node at once: it was suspended or revoked."""
        for session in tuple(self._open.get(NodeId(node), ())):
            session.end(HansaError(reason))

    def fence(self, newest: NodeSession, epoch: int) -> None:
        """End the sessions of the node but ``newest``, which has the epoch now."""
        for session in tuple(self._open.get(newest.node, ())):
            if session is not newest and session.epoch < epoch:
                session.end(HansaError(Reason.EPOCH_FENCED), by_epoch=epoch)

    def conditions(self) -> dict[str, tuple[str, ...]]:
        """Return what each connected node says of itself, where it says anything."""
        newest = [max(sessions, key=lambda one: one.epoch) for sessions in self._open.values() if sessions]
        return {session.node: session.conditions for session in newest if session.conditions}

    def closed(self, session: NodeSession) -> None:
        """Forget a session that has ended."""
        others = self._open.get(session.node, set())
        others.discard(session)
        if not others:
            self._open.pop(session.node, None)

    async def close(self) -> None:
        """End all sessions and wait until that is written down."""
        sessions = [session for of_node in self._open.values() for session in of_node]
        for session in sessions:
            session.end()
        await asyncio.gather(*(session.ended() for session in sessions))


class NodeSession:
    """One session. Its task reads and writes; ``outgoing`` hands the frames to the wire."""

    def __init__(self, sessions: Sessions, node: NodeId, frames: AsyncIterator[NodeFrame]) -> None:
        """Made by ``Sessions.open``."""
        self.node = node
        self.epoch = 0
        self.conditions: tuple[str, ...] = ()
        self._sessions = sessions
        self._desk = sessions.desk
        self._patience = sessions.patience
        self._frames = frames
        self._out: asyncio.Queue[CoordinatorFrame | None] = asyncio.Queue(EVENT_WINDOW)
        self._inbox: asyncio.Queue[Event | CommandAck] = asyncio.Queue(EVENT_WINDOW)
        self._end = asyncio.Event()
        self._fault: HansaError | None = None
        self._by_epoch = 0
        self._sender = Sender(0, COMMAND_WINDOW)
        # The size of our log that this session was told of last.
        self._told = 0
        self._clock_ahead: int | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._consumer: asyncio.Task[Any] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, not_after: datetime | None) -> None:
        """Start the session's task; it ends by itself when the certificate does."""
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(), name=f"session-{self.node}")
        if not_after is not None:
            left = (not_after - self._desk.clock()).total_seconds()
            self._expiry = loop.call_later(max(left, 0), self.end, HansaError(Reason.CERTIFICATE_REFUSED))

    def end(self, fault: HansaError | None = None, *, by_epoch: int = 0) -> None:
        """End the session; the first cause stands."""
        if self._end.is_set():
            return
        self._fault, self._by_epoch = fault, by_epoch
        self._end.set()
        # A peer that does not read must not keep its stream.
        asyncio.get_running_loop().call_later(self._patience.farewell.total_seconds(), self._force)

    async def ended(self) -> None:
        """Return once the session has ended and its end is in the store."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def outgoing(self) -> AsyncGenerator[CoordinatorFrame, None]:
        """Yield the frames for the node until the session ends.

        Raises:
            HansaError: why it ended, after a last ``Fenced`` frame; nothing
                is raised where the stream ended or the node was silent.
        """
        self._consumer = asyncio.current_task()
        try:
            while (frame := await self._out.get()) is not None:
                yield frame
            if self._fault is not None:
                yield Fenced(self._by_epoch, self._fault.reason.value)
        finally:
            self._consumer = None
            self.end()
        if self._fault is not None:
            raise self._fault

    def _force(self) -> None:
        if self._consumer is not None:
            self._consumer.cancel()

    async def _run(self) -> None:
        remember(node=self.node)
        try:
            await until_first_ends(self._attach_and_stream(), self._wait_for_end())
        except TimeoutError:
            _log.info("session_silent", node=self.node, epoch=self.epoch)
        except HansaError as error:
            _log.info("session_refused", node=self.node, epoch=self.epoch, reason=error.reason.value, detail=str(error))
            self.end(error)
        except Exception:
            _log.exception("session_crashed", node=self.node, epoch=self.epoch)
            self.end(HansaError(Reason.INTERNAL))
        finally:
            self._hang_up()
            await self._write_end()

    def _hang_up(self) -> None:
        self.end()
        if self._expiry is not None:
            self._expiry.cancel()
        # What is still queued comes again; the end must not wait for room.
        while not self._out.empty():
            self._out.get_nowait()
        self._out.put_nowait(None)

    async def _write_end(self) -> None:
        turn = self._desk.turn()
        try:
            if self.epoch:
                await self._desk.commit(lambda session: disconnect(session, self.node, self.epoch, turn))
        except Exception:
            # The next session, or the next start, writes the same again.
            _log.exception("session_end_not_written", node=self.node, epoch=self.epoch)
        self._sessions.closed(self)
        _log.info("session_ended", node=self.node, epoch=self.epoch)

    async def _wait_for_end(self) -> None:
        await self._end.wait()

    async def _attach_and_stream(self) -> None:
        async with asyncio.timeout(self._patience.attach.total_seconds()):
            welcome = await self._greet(await self._expect(Hello))
            await self._out.put(welcome)
            await self._connect(await self._expect(HeadProof), welcome)
        _log.info("session_opened", node=self.node, epoch=self.epoch)
        await until_first_ends(self._read(), self._apply(), self._send_commands())

    async def _greet(self, hello: Hello) -> Welcome:
        turn, nonce = self._desk.turn(), self._sessions.nonce()
        standing = await self._desk.commit(lambda session: greet(session, self.node, hello, nonce=nonce, turn=turn))
        welcome = self._checked(standing)
        self.epoch = welcome.epoch
        remember(epoch=welcome.epoch)
        self._sessions.fence(self, welcome.epoch)
        return welcome

    async def _connect(self, proof: HeadProof, welcome: Welcome) -> None:
        turn = self._desk.turn()
        self._checked(
            await self._desk.commit(lambda session: connect(session, self.node, proof, welcome=welcome, turn=turn))
        )
        self._sender = Sender(proof.command_cursor.seq, COMMAND_WINDOW)

    def _checked(self, standing: Standing) -> Welcome:
        if standing.welcome is None:
            # The node's other sessions speak for the same store, or for its clone.
            self._sessions.cut(self.node, Reason.NODE_QUARANTINED)
            raise HansaError(Reason.NODE_QUARANTINED, log=standing.quarantined)
        return standing.welcome

    async def _next(self) -> NodeFrame | None:
        """Return the node's next frame; None at the end of the stream."""
        return await anext(self._frames, None)

    async def _expect(self, kind: type[F]) -> F:
        frame = await self._next()
        if not isinstance(frame, kind):
            raise HansaError(Reason.PROTOCOL_VIOLATION, f"A {kind.__name__} was due.", log=type(frame).__name__)
        return frame

    async def _read(self) -> None:
        more = True
        while more:
            # Around both: a peer that sends and never reads is as good as silent.
            async with asyncio.timeout(self._patience.silence.total_seconds()):
                more = await self._take(await self._next())

    async def _take(self, frame: NodeFrame | None) -> bool:
        """Pass the frame on; false at the end of the stream."""
        match frame:
            case None:
                return False
            case Heartbeat():
                check_epoch(frame.epoch, self.epoch)
                self.conditions = frame.conditions
                log = await self._exchange(frame.log)
                await self._note_clock(frame.wall)
                await self._out.put(HeartbeatReply(frame.monotonic_ms, self._desk.clock(), log))
            case Event() | CommandAck():
                check_epoch(frame.epoch, self.epoch)
                await self._inbox.put(frame)
            case _:
                raise HansaError(Reason.PROTOCOL_VIOLATION, "The session is attached already.")
        return True

    async def _note_clock(self, wall: datetime | None) -> None:
        """Write how far the node's clock is from ours, when that changes; the doctor looks at it."""
        if wall is None:
            return
        ahead = round((wall - self._desk.clock()).total_seconds())
        if self._clock_ahead is not None and abs(ahead - self._clock_ahead) < _CLOCK_CHANGE_SECONDS:
            return
        self._clock_ahead = ahead
        if abs(ahead) > CLOCK_TOLERANCE.total_seconds():
            _log.warning("node_clock_differs", node=self.node, ahead_seconds=ahead)
        await self._desk.read(lambda session: SessionRepository(session).note_clock(self.node, ahead))

    async def _exchange(self, news: LogNews) -> LogNews:
        keeper, turn = self._sessions.keeper, self._desk.turn()
        if keeper is None:
            return NO_NEWS
        heard = Heard(self.node, self.epoch, news, self._told)
        found = await self._desk.commit(lambda session: (exchange(session, keeper, heard, turn), Changed()))
        if found.quarantined:
            self._sessions.cut(self.node, Reason.NODE_QUARANTINED)
            raise HansaError(Reason.NODE_QUARANTINED, log=found.quarantined)
        if found.answer.checkpoint:
            self._told = parse_note(found.answer.checkpoint).checkpoint.size
        return found.answer

    async def _apply(self) -> None:
        while True:
            frames = [await self._inbox.get()]
            # All that waits goes into one transaction: a burst costs one fsync.
            while not self._inbox.empty():
                frames.append(self._inbox.get_nowait())
            await self._apply_batch(self._batch(frames))

    def _batch(self, frames: list[Event | CommandAck]) -> Batch:
        events = [frame for frame in frames if isinstance(frame, Event)]
        acks = [frame.upto_seq for frame in frames if isinstance(frame, CommandAck)]
        news = [upto for upto in acks if self._sender.acknowledged(upto)]
        return Batch(node=self.node, epoch=self.epoch, events=events, acked=max(news, default=None))

    async def _apply_batch(self, batch: Batch) -> None:
        turn = self._desk.turn()
        applied = await self._desk.commit(lambda session: apply_batch(session, batch, turn))
        if batch.events:
            await self._out.put(EventAck(self.epoch, applied.upto_seq))
        if batch.acked is not None:
            self._desk.bells.ring_node(self.node)
        if applied.fault is not None:
            raise applied.fault

    async def _send_commands(self) -> None:
        with self._desk.bells.of_node(self.node) as bell:
            while True:
                # Before the look, so that no command falls between look and wait.
                bell.clear()
                room = self._sender.room
                sent = await self._send_up_to(room) if room > 0 else 0
                if sent < room or room <= 0:
                    await bell.wait()

    async def _send_up_to(self, room: int) -> int:
        after = self._sender.after
        commands = await self._desk.read(
            lambda session: CommandRepository(session).pending(self.node, after=after, limit=room)
        )
        for command in commands:
            # First the number: the acknowledgement may come while ``put`` waits.
            self._sender.sending(command.seq)
            await self._out.put(CommandFrame(self.epoch, command.seq, command.prev_hash, command.body))
        return len(commands)
