"""The outermost layer of every call: admission, parsing, and the one error boundary.

It hands gRPC a handler of its own that takes and gives raw bytes, so that
refusals and unreadable messages go through ``errors.fail`` too; gRPC would
answer them with the text of a Python exception.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, TypeAlias, TypeVar

import grpc
from google.protobuf import descriptor_pool, message_factory

from coordinator.api.caller import Caller, Kind, set_caller
from coordinator.api.errors import fail
from coordinator.api.guard import Context, Guard, address_of, claim_of
from coordinator.api.method_policy import MethodPolicy
from coordinator.api.rates import RateLimiter, Slots
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import is_job_id
from hansa.runtime.logging import remember
from hansa.runtime.reading import read_message

T = TypeVar("T")

# Generic in the stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_NOBODY: Final = "-"
# Half of what gRPC takes of a stream's first answer without waiting for its reader.
_KEPT_BYTES: Final = 32 << 10
# Refusals of one caller's calls to one method that are written into the log.
_TOLD_PER_MINUTE: Final = 60


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may take, whatever deadline its caller has set.

    Streams of answers have no end of their own: sessions and watches end by
    their own rules. Whoever does not take an answer is cut off: after
    ``reading``, and a second more for each ``slowest`` bytes of it.
    """

    unary: timedelta = timedelta(seconds=60)
    upload: timedelta = timedelta(minutes=10)
    admission: timedelta = timedelta(seconds=20)
    reading: timedelta = timedelta(seconds=30)
    slowest: int = 64 << 10

    def of(self, handler: Handler) -> float | None:
        """Return the seconds that a call of this kind may take; None for no limit."""
        if handler.response_streaming:
            return None
        return (self.upload if handler.request_streaming else self.unary).total_seconds()

    def of_answer(self, size: int) -> float:
        """Return the seconds within which a message of ``size`` bytes has to be taken."""
        return self.reading.total_seconds() + size / self.slowest


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many calls may be under way at one listener.

    Attributes:
        calls: in all.
        of_address: from one address, while it is not known who calls.
        of_claim: of those, by who claims to be the same one. Many people may
            share an address, and must not share the fate of one of them.
        of_one: of one caller, to all methods together.
    """

    calls: int = 1000
    of_address: int = 500
    of_claim: int = 48
    of_one: int = 96


class Boundary(grpc.aio.ServerInterceptor):
    """Wraps every method of a server; it is the server's only interceptor.

    Methods are coroutines or asynchronous generators that read requests from
    the iterator that they are given, not with ``context.read``.

    To gRPC every method is one of streams, which is the same on the wire. So
    nothing of a request is read before it is known who calls, reading and
    writing have limits of time, and a call holds its slot until its answer
    was taken: gRPC would wait without end for the one message of a request,
    and would keep answers that nobody reads.
    """

    def __init__(self, guard: Guard, patience: Patience | None = None, crowd: Crowd | None = None) -> None:
        """Take what admits calls, how long they may take, and how many there may be."""
        self._guard = guard
        self._patience = patience or Patience()
        self._crowd = crowd or Crowd()
        self._slots = Slots()
        self._told = RateLimiter(time.monotonic)

    @property
    def most_calls(self) -> int:
        """How many calls may be under way."""
        return self._crowd.calls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the method's handler, wrapped; None for an unknown method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return self._wrapped(str(handler_call_details.method), handler)

    def _wrapped(self, method: str, handler: Handler) -> Handler:
        async def behave(raw: AsyncIterator[bytes], context: Context) -> None:
            call = _Call(method, handler, raw, context)
            task = asyncio.current_task()
            if task is None:
                raise AssertionError("a call is a task")
            # gRPC keeps what a peer does not read, also the last of it, also when we have given
            # the peer up; and for as long, which is the life of this task, the peer keeps its slots.
            task.add_done_callback(lambda _: call.slots.close())
            try:
                await self._serve(call)
            except grpc.aio.AbortError:
                raise
            except asyncio.CancelledError:
                # The peer has gone, which nobody has to hear of; or it was us who gave it up.
                task.uncancel()
                await self._fail(call, HansaError(Reason.CALL_TOO_LONG), log=False)
            except Exception as error:  # the boundary: nothing may leak past it
                await self._fail(call, error)

        wrapped: Handler = grpc.stream_stream_rpc_method_handler(behave)
        return wrapped

    async def _fail(self, call: _Call, error: Exception, *, log: bool = True) -> None:
        # A flood must not fill the disk with the news of itself, nor hide those of others.
        who = address_of(call.context.peer()) if call.caller == _NOBODY else call.caller
        log = log and self._told.take(who, call.method, per_minute=_TOLD_PER_MINUTE) == 0
        # A peer that has gone gets no status.
        with suppress(grpc.aio.InternalError):
            await fail(call.context, error, method=call.method, caller=call.caller, log=log)

    async def _serve(self, call: _Call) -> None:
        self._take(call, most=self._crowd.calls, reason=Reason.OVERLOADED)
        known, policy = await self._admit(call)
        caller = call.caller = known.subject
        set_caller(known)
        _remember(call, known)
        self._guard.count(known, call.method, policy)
        self._take(call, caller, most=self._crowd.of_one)
        self._take(call, caller, call.method, most=policy.at_once)
        requests = _each(call.raw, _parser(call.method, call.handler, policy))
        if call.handler.response_streaming:
            await self._stream(call, requests)
        else:
            answer = await _in_time(_answer(call, requests), self._patience.of(call.handler))
            await self._write(call, answer)

    def _take(self, call: _Call, *place: str, most: int, reason: Reason = Reason.RATE_LIMITED) -> None:
        call.slots.enter_context(self._slots.taking(*place, most=most, reason=reason))

    async def _admit(self, call: _Call) -> tuple[Caller, MethodPolicy]:
        address = address_of(call.context.peer())
        with (
            self._slots.taking(address, most=self._crowd.of_address),
            self._slots.taking(address, claim_of(call.context), most=self._crowd.of_claim),
        ):
            admitting = self._guard.admit(call.method, call.context)
            return await _in_time(admitting, self._patience.admission.total_seconds())

    async def _stream(self, call: _Call, requests: AsyncIterator[Any]) -> None:
        if call.handler.request_streaming:
            answers = call.handler.stream_stream(requests, call.context)
        else:
            request = await _in_time(_only(requests), self._patience.unary.total_seconds())
            answers = call.handler.unary_stream(request, call.context)
        # Closed here and now when the call ends, not when the collector comes by.
        async with aclosing(answers):
            async for answer in answers:
                await self._write(call, answer)

    async def _write(self, call: _Call, answer: Any) -> None:
        """Hand an answer to gRPC, which takes it once the peer has read nearly all that came before.

        Raises:
            HansaError: ``CALL_TOO_LONG``; the peer does not read.
        """
        serialise = call.handler.response_serializer
        data = answer if serialise is None else serialise(answer)
        try:
            async with asyncio.timeout(self._patience.of_answer(len(data))):
                if not call.begun and len(data) > _KEPT_BYTES:
                    # By itself: a status can only be sent once this was, and the answer may stand in its way.
                    await call.context.send_initial_metadata(())
                call.begun = True
                await call.context.write(data)
        except TimeoutError as error:
            raise HansaError(Reason.CALL_TOO_LONG, "The answer was not read in time.") from error


@dataclass(slots=True)
class _Call:
    """One call on its way through the boundary.

    ``caller`` is nobody until it is known who calls; ``begun`` says that answers have begun;
    ``slots`` are what it holds until gRPC is done with it.
    """

    method: str
    # Its functions are a synchronous server's in the stubs.
    handler: Any
    raw: AsyncIterator[bytes]
    context: Context
    caller: str = _NOBODY
    begun: bool = False
    slots: ExitStack = field(default_factory=ExitStack)


async def _answer(call: _Call, requests: AsyncIterator[Any]) -> Any:
    """Return the one answer of a method that has one."""
    if call.handler.request_streaming:
        return await call.handler.stream_unary(requests, call.context)
    return await call.handler.unary_unary(await _only(requests), call.context)


def _remember(call: _Call, caller: Caller) -> None:
    """Let what is logged in this call say what it is about; each call is a task with a context of its own."""
    remember(method=call.method)
    if caller.kind is Kind.NODE:
        remember(node=caller.name)


async def _only(requests: AsyncIterator[Any]) -> Any:
    """Return the one request of a method that takes one; what is logged then says which job it names."""
    async for request in requests:
        job_id = getattr(request, "job_id", "")
        if isinstance(job_id, str) and is_job_id(job_id):
            remember(job_id=job_id)
        return request
    raise HansaError(Reason.MALFORMED, "The request has no message.")


async def _in_time(call: Awaitable[T], seconds: float | None) -> T:
    """Await ``call``, for so long only; a ``TimeoutError`` of its own is a crash like any other."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await call
    except TimeoutError as error:
        if limit.expired():
            raise HansaError(Reason.CALL_TOO_LONG) from error
        raise


def _parser(method: str, handler: Handler, policy: MethodPolicy) -> Callable[[bytes], Any]:
    # A method without a deserialiser takes the bytes as they are.
    kind = _request_class(method) if handler.request_deserializer else None

    def parse(raw: bytes) -> Any:
        if len(raw) > policy.max_bytes:
            raise HansaError(Reason.MESSAGE_TOO_LARGE, f"The request is over {policy.max_bytes} bytes.")
        return raw if kind is None else read_message(kind, raw)

    return parse


def _request_class(method: str) -> Any:
    found = descriptor_pool.Default().FindMethodByName(method.removeprefix("/").replace("/", "."))
    return message_factory.GetMessageClass(found.input_type)


async def _each(messages: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for raw in messages:
        yield parse(raw)
