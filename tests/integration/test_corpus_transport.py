"""The corpus below the message, G4 and G13 to G20: headers, compression, streams, deadlines and pings."""

from __future__ import annotations

import asyncio
import re
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.api.caller import Caller, Kind
from coordinator.api.guard import Guard
from coordinator.api.interceptors import Boundary, Patience
from coordinator.api.rates import RateLimiter
from coordinator.domain.authorisation import Outsider
from hansa.contract.directory import Role
from tests.support.corpus import CorpusFederation, Entry, Memory, check_refusal, corpus_federation, entries, error_of
from tests.support.live_coordinator import OLGA
from tests.support.raw_http2 import GOAWAY, HEADERS, PING, grpc_message, raw_connection

CONNECT = "/hansa.v1.NodeService/Connect"
UPLOAD = "/hansa.v1.NodeService/UploadSummary"
LIST_NODES = "/hansa.v1.CatalogueService/ListNodes"


@pytest.fixture
async def federation(tmp_path: Path) -> AsyncIterator[CorpusFederation]:
    async with corpus_federation(tmp_path) as running:
        yield running


@pytest.mark.parametrize("entry", entries("transport"))
async def test_what_is_wrong_below_the_message_harms_nobody_else(federation: CorpusFederation, entry: Entry) -> None:
    act: Callable[[CorpusFederation, Entry], Awaitable[None]] = ACTS[entry.input["act"]]
    before, memory = federation.dump(), Memory()
    await act(federation, entry)
    memory.check()
    assert federation.dump() == before
    assert await federation.is_up()


def tls(federation: CorpusFederation) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=federation.live.root.decode())


async def gzip_bomb(federation: CorpusFederation, entry: Entry) -> None:
    bomb = gzip_of_zeros(int(entry.input["megabytes"]))
    (authorization,) = federation.live.bearer(OLGA)
    headers = [("grpc-encoding", "gzip"), authorization]
    async with raw_connection(federation.live.address("people"), tls(federation)) as connection:
        await connection.request(LIST_NODES, headers, grpc_message(bomb, compressed=True))
        status = None
        while status is None:
            answer = await connection.until(HEADERS)
            assert answer is not None, "the connection ended without a status"
            status = re.search(rb"grpc-status[\x01\x02]([0-9]+)", answer.payload)
        assert int(status[1][:2]) in entry.expect["status"]


def gzip_of_zeros(megabytes: int) -> bytes:
    """Return the gzip form of that many zeros without ever having them."""
    packer = zlib.compressobj(wbits=31)
    return b"".join([packer.compress(bytes(1 << 20)) for _ in range(megabytes)]) + packer.flush()


async def large_metadata(federation: CorpusFederation, entry: Entry) -> None:
    call: Any = federation.raw_channel("people").unary_unary(LIST_NODES)
    metadata = (*federation.live.bearer(OLGA), ("x-padding", "x" * int(entry.input["bytes"])))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=metadata, timeout=20)
    check_refusal(caught.value, entry.expect)


async def many_sessions(federation: CorpusFederation, entry: Entry) -> None:
    node = await federation.attach()
    open_stream: Any = federation.raw_channel("node").stream_stream(CONNECT)
    await overcrowded([open_stream() for _ in range(entry.input["count"])], entry.expect)
    await node.heartbeat()


async def many_uploads(federation: CorpusFederation, entry: Entry) -> None:
    open_stream: Any = federation.raw_channel("node").stream_unary(UPLOAD)
    await overcrowded([open_stream() for _ in range(entry.input["count"])], entry.expect)


async def overcrowded(calls: list[Any], expect: Mapping[str, Any]) -> None:
    """Check that all calls but a few end at once, each with its reason."""
    enough = len(calls) - int(expect["most_open"])
    waiting = {asyncio.ensure_future(call.code()): call for call in calls}
    ended: list[Any] = []
    async with asyncio.timeout(60):
        while len(ended) < enough:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            ended += [waiting.pop(one) for one in done]
    # REFUSED_STREAM of HTTP/2 itself, before any of our code, is UNAVAILABLE to a client.
    refused = [call for call in ended if (await call.code()).name != "UNAVAILABLE"]
    for call in refused[:100]:
        check_refusal(await error_of(call), {**expect, "own_words": True})
    assert refused
    for call in waiting.values():
        call.cancel()
    await asyncio.wait(waiting)


async def silence(federation: CorpusFederation, entry: Entry) -> None:
    stream: Any = federation.raw_channel("node").stream_stream(CONNECT)()
    async with asyncio.timeout(60):
        assert (await stream.code()).name == entry.expect["code"]
    assert await stream.read() is grpc.aio.EOF


async def no_time(federation: CorpusFederation, entry: Entry) -> None:
    call: Any = federation.raw_channel("people").unary_unary(LIST_NODES)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=federation.live.bearer(OLGA), timeout=entry.input["seconds"])
    check_refusal(caught.value, entry.expect)


async def pings(federation: CorpusFederation, entry: Entry) -> None:
    async with raw_connection(federation.live.address("people"), tls(federation)) as connection:
        answer = None
        for _ in range(entry.input["count"]):
            await connection.ping()
            answer = await connection.until(PING, GOAWAY)
            if answer is None or answer.kind == GOAWAY:
                break
        assert answer is not None
        assert (answer.kind, answer.error) == (GOAWAY, entry.expect["goaway"])


class Hanging(grpc.GenericRpcHandler):
    """Methods that never end by themselves."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if str(handler_call_details.method).endswith("UploadSummary"):
            return grpc.stream_unary_rpc_method_handler(self.behave)
        return grpc.unary_unary_rpc_method_handler(self.behave)

    async def behave(self, _request: Any, _context: Any) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()
        return b""


async def hang(_federation: CorpusFederation, entry: Entry) -> None:
    async def somebody(_context: Any) -> Caller:
        return Caller(Kind.PERSON, "ada", frozenset({Role.RESEARCHER}))

    async def some_node(_context: Any) -> Caller:
        return Caller(Kind.NODE, "FI", frozenset({Outsider.NODE}))

    guard = Guard({Role.RESEARCHER: somebody, Outsider.NODE: some_node}, RateLimiter(lambda: 0.0))
    short = timedelta(seconds=0.2)
    methods = Hanging()
    server = grpc.aio.server(interceptors=[Boundary(guard, Patience(unary=short, upload=short))])
    server.add_generic_rpc_handlers((methods,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = f"/hansa.v1.{entry.input['method']}"
        open_call: Any = channel.stream_unary(method) if "Upload" in method else channel.unary_unary(method)
        arguments = () if "Upload" in method else (b"",)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await open_call(*arguments, timeout=entry.input["seconds"])
        check_refusal(caught.value, entry.expect)
        await methods.ended.wait()
    await server.stop(None)


def test_no_call_that_ends_may_take_longer_than_a_minute() -> None:
    assert Patience().unary <= timedelta(seconds=60)
    assert Patience().upload <= timedelta(hours=1)


ACTS: Mapping[str, Callable[[CorpusFederation, Entry], Awaitable[None]]] = {
    "gzip": gzip_bomb,
    "metadata": large_metadata,
    "sessions": many_sessions,
    "uploads": many_uploads,
    "silence": silence,
    "deadline": no_time,
    "hang": hang,
    "pings": pings,
}
