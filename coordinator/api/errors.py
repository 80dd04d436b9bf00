"""The one place where exceptions become statuses."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import grpc
import structlog
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from hansa.contract.errors import CATALOGUE, DOMAIN, HansaError, Reason

_log = structlog.get_logger(__name__)


def status_of(error: HansaError) -> status_pb2.Status:
    """Return what the caller is told: code, public words, reason and field, and when to ask again."""
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN)
    if error.field:
        info.metadata["field"] = error.field
    status = status_pb2.Status(code=error.code.value, message=error.public)
    status.details.add().Pack(info)
    if error.retry_seconds > 0:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(math.ceil(error.retry_seconds * 1000))
        status.details.add().Pack(retry)
    return status


async def fail(
    context: grpc.aio.ServicerContext[Any, Any], error: Exception, *, method: str, caller: str, log: bool = True
) -> NoReturn:
    """End the call with the status that belongs to ``error``; nothing else may leak.

    Args:
        context: the call's.
        error: a refusal, or a crash.
        method: which method was called.
        caller: who called.
        log: whether a refusal is told in our log; a crash always is.

    Raises:
        grpc.aio.AbortError: always; gRPC's own way to end a call.
    """
    if isinstance(error, HansaError):
        tell = _log.info if log else _log.debug
        tell("call_refused", method=method, caller=caller, reason=error.reason.value, detail=str(error))
        refusal = error
    else:
        _log.error("call_crashed", method=method, caller=caller, exc_info=error)
        refusal = HansaError(Reason.INTERNAL, CATALOGUE[Reason.INTERNAL].public)
    await context.abort_with_status(rpc_status.to_status(status_of(refusal)))
    raise AssertionError("abort returned")
