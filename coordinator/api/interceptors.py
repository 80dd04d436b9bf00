"""The outermost layer of every call: admission, parsing, and the one error boundary.

It hands gRPC a handler of its own that takes raw bytes, so that refusals and
unreadable messages go through ``errors.fail`` too; gRPC would answer them with
the text of a Python exception.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf import descriptor_pool, message_factory

from coordinator.api.caller import Caller, Kind, set_caller
from coordinator.api.errors import fail
from coordinator.api.guard import Context, Guard
from coordinator.api.method_policy import MethodPolicy
from coordinator.api.rates import Slots
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import is_job_id
from hansa.runtime.logging import remember
from hansa.runtime.reading import read_message

# Generic in the stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_NOBODY: Final = "-"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may take, whatever deadline its caller has set.

    Streams of answers have no end of their own: sessions and watches end by
    their own rules.
    """

    unary: timedelta = timedelta(seconds=60)
    upload: timedelta = timedelta(minutes=10)

    def of(self, handler: Handler) -> float | None:
        """Return the seconds that a call of this kind may take; None for no limit."""
        if handler.response_streaming:
            return None
        return (self.upload if handler.request_streaming else self.unary).total_seconds()


class Boundary(grpc.aio.ServerInterceptor):
    """Wraps every method of a server; it is the server's only interceptor.

    Methods are coroutines or asynchronous generators that read requests from
    the iterator that they are given, not with ``context.read``.
    """

    def __init__(self, guard: Guard, patience: Patience | None = None) -> None:
        """Take what admits calls, and how long they may take."""
        self._guard = guard
        self._patience = patience or Patience()
        self._slots = Slots()

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
        inner, make = _behaviour(handler)

        async def behave(raw: Any, context: Context) -> Any:
            caller = _NOBODY
            try:
                known, policy = await self._guard.admit(method, context)
                caller = known.subject
                set_caller(known)
                parse = _parser(method, handler, policy)
                with self._slots.taking(caller, method, most=policy.at_once):
                    request = _each(raw, parse) if handler.request_streaming else parse(raw)
                    _remember(method, known, request)
                    return await _in_time(_call(inner, request, context), self._patience.of(handler))
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # the boundary: nothing may leak past it
                await fail(context, error, method=method, caller=caller)

        wrapped: Handler = make(behave, request_deserializer=None, response_serializer=handler.response_serializer)
        return wrapped


def _remember(method: str, caller: Caller, request: Any) -> None:
    """Let what is logged in this call say what it is about; each call is a task with a context of its own."""
    remember(method=method)
    if caller.kind is Kind.NODE:
        remember(node=caller.name)
    job_id = getattr(request, "job_id", "")
    if isinstance(job_id, str) and is_job_id(job_id):
        remember(job_id=job_id)


def _behaviour(handler: Handler) -> tuple[Any, Any]:
    """Return the method's own function, and what makes a handler of its kind."""
    kinds: dict[tuple[bool, bool], tuple[Any, Any]] = {
        (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
        (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
        (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
        (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
    }
    return kinds[handler.request_streaming, handler.response_streaming]


async def _call(inner: Any, request: Any, context: Context) -> Any:
    if not inspect.isasyncgenfunction(inner):
        return await inner(request, context)
    # Closed here and now when the call ends, not when the collector comes by.
    async with aclosing(inner(request, context)) as responses:
        async for response in responses:
            await context.write(response)
    return None


async def _in_time(call: Awaitable[Any], seconds: float | None) -> Any:
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
