"""What comes back from the coordinator as an error, in Hansa's words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from hansa.contract.errors import DOMAIN, HansaError, Reason

_STATUS_KEY: Final = "grpc-status-details-bin"
_MOST_TEXT: Final = 2000

# What a status without an ErrorInfo means: it was made by gRPC, not by Hansa.
_BARE: Final = {
    grpc.StatusCode.UNAVAILABLE: Reason.COORDINATOR_UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.COORDINATOR_UNREACHABLE,
    grpc.StatusCode.UNAUTHENTICATED: Reason.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: Reason.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.RATE_LIMITED,
}
# How gRPC refuses a call beyond the most that a server takes at once; other bare
# statuses of this code are about sizes, which will not be others the next time.
_CROWDED: Final = "Concurrent RPC limit exceeded!"
_CROWDED_SECONDS: Final = 1.0


class RemoteError(HansaError):
    """A refusal by the coordinator, or the news that it cannot be reached.

    ``public`` and ``field`` are the coordinator's words: not trusted, to be
    escaped before they are shown. So is ``retry_seconds``: when the coordinator
    asks to be asked again, 0 for never.
    """


def remote_error(error: grpc.aio.AioRpcError) -> RemoteError:
    """Return what ``error`` says.

    A reason that this release does not know (the coordinator's is newer) is
    told in the text of an ``INTERNAL``.
    """
    status = _status(error)
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            return _known(info, status.message[:_MOST_TEXT], _retry_seconds(status.details))
    reason = _BARE.get(error.code(), Reason.INTERNAL)
    retry = _CROWDED_SECONDS if error.details() == _CROWDED else 0.0
    return RemoteError(reason, log=f"{error.code().name}: {error.details()}", retry_seconds=retry)


def _known(info: error_details_pb2.ErrorInfo, message: str, retry: float) -> RemoteError:
    field = info.metadata.get("field", "")[:_MOST_TEXT]
    try:
        return RemoteError(Reason(info.reason), message, field=field, retry_seconds=retry)
    except ValueError:
        return RemoteError(Reason.INTERNAL, f"{info.reason[:64]}: {message}", field=field, retry_seconds=retry)


def _retry_seconds(details: Iterable[AnyMessage]) -> float:
    """Return when the coordinator asks to be asked again; 0 if it does not."""
    hint = error_details_pb2.RetryInfo()
    for detail in details:
        try:
            if detail.Is(hint.DESCRIPTOR) and detail.Unpack(hint):
                return max(float(hint.retry_delay.ToMilliseconds()) / 1000, 0.0)
        except DecodeError:
            break
    return 0.0


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    for key, value in error.trailing_metadata() or ():
        if key == _STATUS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()


def unreachable(endpoint: str, log: str = "") -> RemoteError:
    """Return the error of a coordinator that does not answer at ``endpoint``."""
    return RemoteError(
        Reason.COORDINATOR_UNREACHABLE,
        f"The coordinator cannot be reached at {endpoint}, or its certificate is not of the profile's CA.",
        log=log,
    )
