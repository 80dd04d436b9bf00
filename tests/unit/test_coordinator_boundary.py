"""What leaves a method that fails: a reason, never the text of an exception."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.api.caller import Caller, Kind, current_caller
from coordinator.api.guard import Guard, claim_of
from coordinator.api.interceptors import Boundary, Crowd
from coordinator.api.rates import RateLimiter
from coordinator.domain.authorisation import Outsider
from hansa.contract.directory import Role
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.clock import utc_now
from hansa.sdk.tokens import mint
from tests.support.live_coordinator import info_of

UNARY = "/hansa.v1.JobService/GetJob"
SENDS_MANY = "/hansa.v1.JobService/WatchJob"
TAKES_MANY = "/hansa.v1.NodeService/UploadSummary"
BOTH_MANY = "/hansa.v1.NodeService/Connect"
SECRET = "sample NA12878"


async def read_all(requests: AsyncIterator[bytes]) -> list[bytes]:
    return [request async for request in requests]


class Methods(grpc.GenericRpcHandler):
    """One method of each kind; the request says how it ends."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return {
            UNARY: grpc.unary_unary_rpc_method_handler(self.unary),
            SENDS_MANY: grpc.unary_stream_rpc_method_handler(self.sends_many),
            TAKES_MANY: grpc.stream_unary_rpc_method_handler(self.takes_many),
            BOTH_MANY: grpc.stream_stream_rpc_method_handler(self.both_many),
            "/x/Unruled": grpc.unary_unary_rpc_method_handler(self.unary),
        }.get(str(handler_call_details.method))

    async def unary(self, request: bytes, _context: Any) -> bytes:
        return self.end(request)

    async def sends_many(self, request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        yield self.end(request)

    async def takes_many(self, requests: AsyncIterator[bytes], _context: Any) -> bytes:
        return self.end((await read_all(requests))[-1])

    async def both_many(self, requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield self.end(request)

    def end(self, request: bytes) -> bytes:
        if request == b"crash":
            raise ValueError(SECRET)
        if request == b"refuse":
            raise HansaError(Reason.JOB_UNKNOWN, field="job_id", log=SECRET)
        return request + b" " + current_caller().subject.encode()


async def somebody(_context: Any) -> Caller:
    return Caller(Kind.PERSON, "rita", frozenset({Role.RESEARCHER}))


async def some_node(_context: Any) -> Caller:
    return Caller(Kind.NODE, "FI", frozenset({Outsider.NODE}))


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    guard = Guard({Role.RESEARCHER: somebody, Outsider.NODE: some_node}, RateLimiter(lambda: 0.0))
    server = grpc.aio.server(interceptors=[Boundary(guard)])
    server.add_generic_rpc_handlers((Methods(),))
    address = f"unix:{tmp_path / 's'}"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel
    await server.stop(None)


def call(channel: Any, method: str, request: bytes) -> Any:
    match method:
        case "/hansa.v1.JobService/WatchJob":
            return last(channel.unary_stream(method)(request))
        case "/hansa.v1.NodeService/UploadSummary":
            return channel.stream_unary(method)(iter([b"before", request]))
        case "/hansa.v1.NodeService/Connect":
            return last(channel.stream_stream(method)(iter([b"before", request])))
        case _:
            return channel.unary_unary(method)(request)


async def last(stream: Any) -> bytes:
    seen = [message async for message in stream]
    return bytes(seen[-1])


KINDS = pytest.mark.parametrize("method", [UNARY, SENDS_MANY, TAKES_MANY, BOTH_MANY])


@KINDS
async def test_a_method_that_succeeds_answers_and_knows_its_caller(channel: grpc.aio.Channel, method: str) -> None:
    subject = b"node:FI" if "Node" in method else b"person:rita"
    assert await call(channel, method, b"hello") == b"hello " + subject


@KINDS
async def test_a_refusal_keeps_its_reason_and_field(channel: grpc.aio.Channel, method: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, method, b"refuse")
    info = info_of(caught.value)
    assert info is not None
    assert (info.reason, info.domain, dict(info.metadata)) == ("JOB_UNKNOWN", "hansa.v1", {"field": "job_id"})
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert SECRET not in str(caught.value)


@KINDS
async def test_a_crash_tells_nothing_but_that_it_was_one(channel: grpc.aio.Channel, method: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, method, b"crash")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "Internal error."
    assert SECRET not in str(caught.value)
    assert "ValueError" not in str(caught.value)


async def test_a_method_without_a_row_in_the_policy_is_refused(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "/x/Unruled", b"hello")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_method_that_does_not_exist_is_unimplemented(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "/x/None", b"hello")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- crowds ---------------------------------------------------------------------------


class Doorman:
    """Recognises people by what they claim; some stand at the door until it is opened."""

    def __init__(self, slow: str) -> None:
        self.slow, self.waiting, self.open = slow, 0, asyncio.Event()
        self.news = asyncio.Event()

    async def __call__(self, context: Any) -> Caller:
        name = claim_of(context)
        if name == self.slow:
            self.waiting += 1
            self.news.set()
            await self.open.wait()
        return Caller(Kind.PERSON, name, frozenset({Role.RESEARCHER}))

    async def has(self, count: int) -> None:
        while self.waiting < count:
            await self.news.wait()
            self.news.clear()


def bearer(name: str) -> tuple[tuple[str, str], ...]:
    token = mint(name, "demo", Ed25519PrivateKey.generate(), now=utc_now(), jti="j")
    return (("authorization", f"Bearer {token}"),)


async def test_who_is_not_yet_known_waits_apart_from_others_of_the_same_address(tmp_path: Path) -> None:
    door = Doorman("rita")
    guard = Guard({Role.RESEARCHER: door}, RateLimiter(lambda: 0.0))
    server = grpc.aio.server(interceptors=[Boundary(guard, crowd=Crowd(of_claim=2))])
    server.add_generic_rpc_handlers((Methods(),))
    address = f"unix:{tmp_path / 's'}"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(60):
        ask: Any = channel.unary_unary(UNARY)
        standing = [asyncio.ensure_future(ask(b"hello", metadata=bearer("rita"))) for _ in range(2)]
        await door.has(2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(b"hello", metadata=bearer("rita"))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await ask(b"hello", metadata=bearer("olga")) == b"hello person:olga"
        door.open.set()
        assert await asyncio.gather(*standing) == [b"hello person:rita"] * 2
    await server.stop(None)
