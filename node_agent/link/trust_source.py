"""The coordinator's mirror of the trust repository, read over the node's own channel.

python-tuf is synchronous and runs in a thread; the calls run on the loop that
owns the channel. Nothing that comes from here is believed for coming from here.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from typing import Any, Final

import grpc

from hansa.contract.errors import HansaError, Reason
from hansa.sdk.errors import remote_error
from hansa.v1 import trust_service_pb2, trust_service_pb2_grpc

_CALL_SECONDS: Final = 20.0
# Longer than the call's own deadline: the thread must not give up before the call does.
_PATIENCE_SECONDS: Final = 30.0


class WireTrustSource:
    """A ``hansa.trust.files.Source``; its methods block and are called outside of the loop."""

    def __init__(self, channel: grpc.aio.Channel, loop: asyncio.AbstractEventLoop) -> None:
        """Take the session's channel and the loop that it belongs to."""
        self._stub = trust_service_pb2_grpc.TrustServiceStub(channel)
        self._loop = loop

    def metadata(self, role: str, version: int, most_bytes: int) -> bytes:
        """Return a role's metadata.

        Raises:
            HansaError: ``TRUST_UNKNOWN``, ``TRUST_INVALID`` (over
                ``most_bytes``), ``COORDINATOR_UNREACHABLE``.
        """
        request = trust_service_pb2.GetMetadataRequest(role=role, version=version)
        return self._wait(self._metadata(request, most_bytes))

    def target(self, path: str, sha256: str, most_bytes: int) -> bytes:
        """Return the target of this digest (hex).

        Raises:
            HansaError: as ``metadata``.
        """
        request = trust_service_pb2.GetTargetRequest(path=path, sha256=bytes.fromhex(sha256))
        return self._wait(self._target(request, most_bytes))

    async def _metadata(self, request: trust_service_pb2.GetMetadataRequest, most_bytes: int) -> bytes:
        return await _whole(self._stub.GetMetadata(request, timeout=_CALL_SECONDS), most_bytes)

    async def _target(self, request: trust_service_pb2.GetTargetRequest, most_bytes: int) -> bytes:
        return await _whole(self._stub.GetTarget(request, timeout=_CALL_SECONDS), most_bytes)

    def _wait(self, reading: Coroutine[Any, Any, bytes]) -> bytes:
        future = asyncio.run_coroutine_threadsafe(reading, self._loop)
        try:
            return future.result(_PATIENCE_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise remote_error(error) from error
        except (TimeoutError, concurrent.futures.CancelledError, grpc.aio.UsageError) as error:
            future.cancel()
            raise HansaError(Reason.COORDINATOR_UNREACHABLE, log="the session ended meanwhile") from error


async def _whole(call: Any, most_bytes: int) -> bytes:
    found = bytearray()
    async for part in call:
        found += part.chunk
        if len(found) > most_bytes:
            call.cancel()
            raise HansaError(Reason.TRUST_INVALID, log=f"the coordinator's mirror sends over {most_bytes} bytes")
    return bytes(found)
