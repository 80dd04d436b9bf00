"""Who does not read is cut off, keeps nothing of ours but a bounded rest, and pays with a slot of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.api.caller import Caller, Kind
from coordinator.api.frames import coordinator_frame, node_frame
from coordinator.api.guard import Guard
from coordinator.api.interceptors import Boundary, Patience
from coordinator.api.method_policy import METHOD_POLICY
from coordinator.api.rates import RateLimiter
from coordinator.domain.frames import NodeFrame
from coordinator.services.sessions import Patience as SessionPatience
from coordinator.services.sessions import Sessions
from hansa.contract.directory import Role
from hansa.contract.ids import NodeId
from hansa.contract.limits import EVENT_WINDOW
from hansa.v1 import node_service_pb2 as wire
from tests.support.job_world import open_world
from tests.support.raw_http2 import SETTINGS, RawConnection, grpc_message
from tests.support.scripted_node import NodeStore

WATCH = "/hansa.v1.JobService/WatchJob"
RESULT = "/hansa.v1.JobService/GetResult"
PATIENCE_SECONDS = 30.0
MESSAGE = bytes(60_000)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Generous(grpc.GenericRpcHandler):
    """A stream without an end, and a large answer."""

    def __init__(self) -> None:
        self.sent = 0
        self.ended = asyncio.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if str(handler_call_details.method) == WATCH:
            return grpc.unary_stream_rpc_method_handler(self.watch)
        return grpc.unary_unary_rpc_method_handler(self.result)

    async def watch(self, _request: bytes, _context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                self.sent += 1
                yield MESSAGE
        finally:
            self.ended.set()

    async def result(self, _request: bytes, _context: Any) -> bytes:
        self.sent += 1
        return bytes(1 << 20)


async def ada(_context: Any) -> Caller:
    return Caller(Kind.PERSON, "ada", frozenset({Role.RESEARCHER}))


@asynccontextmanager
async def serving(reading: float) -> AsyncIterator[tuple[Generous, int]]:
    guard = Guard({Role.RESEARCHER: ada}, RateLimiter(lambda: 0.0))
    patience = Patience(reading=timedelta(seconds=reading), slowest=1 << 30)
    server = grpc.aio.server(interceptors=[Boundary(guard, patience)])
    methods = Generous()
    server.add_generic_rpc_handlers((methods,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield methods, port
    finally:
        await server.stop(None)


@asynccontextmanager
async def never_reading(port: int, path: str) -> AsyncIterator[RawConnection]:
    """Call ``path``, and leave what comes where it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(PREFACE)
    connection = RawConnection(reader, writer)
    await connection.send(SETTINGS)
    await connection.request(path, [], grpc_message(b""))
    try:
        yield connection
    finally:
        writer.close()
        await writer.wait_closed()


async def code_of(channel: Any, path: str) -> grpc.StatusCode:
    """Make a call as somebody who reads; return how it ends, or OK with its first answer."""
    call = channel.unary_stream(path)(b"", timeout=PATIENCE_SECONDS)
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        call.cancel()
    return grpc.StatusCode.OK


async def until_code(port: int, path: str, code: grpc.StatusCode) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(PATIENCE_SECONDS):
        while await code_of(channel, path) is not code:
            pass


async def test_a_watcher_who_never_reads_is_cut_off_and_nothing_piles_up() -> None:
    async with serving(0.3) as (methods, port), never_reading(port, WATCH), asyncio.timeout(PATIENCE_SECONDS):
        await methods.ended.wait()
        # The window of the stream, what gRPC buffers, and the one that waits.
        assert methods.sent * len(MESSAGE) <= 4 * 65_536


async def test_a_watcher_who_reads_is_not_cut_off() -> None:
    async with serving(PATIENCE_SECONDS) as (methods, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        open_watch: Any = channel.unary_stream(WATCH)
        call = open_watch(b"")
        for _ in range(100):
            assert await call.read() == MESSAGE
        call.cancel()
        await methods.ended.wait()


@pytest.mark.parametrize("path", [RESULT, WATCH])
async def test_answers_that_nobody_reads_keep_the_slots_of_their_caller_until_the_connection_ends(path: str) -> None:
    most = METHOD_POLICY[path].at_once
    async with serving(0.1) as (_, port):
        connections = [never_reading(port, path) for _ in range(most)]
        for connection in connections:
            await connection.__aenter__()
        async with asyncio.timeout(PATIENCE_SECONDS):
            # Given up, and yet not forgotten: what lies in gRPC is theirs.
            await until_code(port, path, grpc.StatusCode.RESOURCE_EXHAUSTED)
        for connection in connections:
            await connection.__aexit__(None, None, None)
        await until_code(port, path, grpc.StatusCode.OK)


async def test_a_node_that_sends_and_never_reads_is_cut_off_and_takes_bounded_room(tmp_path: Path) -> None:
    with open_world(f"sqlite:///{tmp_path / 'store.db'}") as world:
        sessions = Sessions(world.desk, lambda: bytes(32), SessionPatience(silence=timedelta(seconds=0.5)))
        store, sent = NodeStore(), 0
        welcomed: asyncio.Future[wire.Welcome] = asyncio.get_running_loop().create_future()

        async def frames() -> AsyncIterator[NodeFrame]:
            nonlocal sent
            yield node_frame(store.hello())
            welcome = await welcomed
            yield node_frame(store.proof(welcome))
            while True:
                sent += 1
                yield node_frame(wire.NodeFrame(heartbeat=wire.Heartbeat(epoch=welcome.epoch)))

        async def read_one_and_stop() -> None:
            async for frame in session.outgoing():
                welcomed.set_result(coordinator_frame(frame).welcome)
                await asyncio.Event().wait()

        session = sessions.open(NodeId("FI"), frames(), not_after=None)
        consumer = asyncio.create_task(read_one_and_stop())
        async with asyncio.timeout(PATIENCE_SECONDS):
            await session.ended()
            await asyncio.wait([consumer])
        # As many answers as the queue takes, and the one that waits for room.
        assert 0 < sent <= EVENT_WINDOW + 1
        await world.desk.settled()
