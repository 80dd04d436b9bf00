"""``TrustService``: the mirror of the trust repository, for people and for nodes; who reads verifies."""

# Names and signatures of methods are the protocol's.
# ruff: noqa: N802, ARG002

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from coordinator.api.calls import Calls
from coordinator.api.guard import Context
from coordinator.services.trust import metadata_file, target_file
from hansa.contract.limits import CHUNK_BYTES
from hansa.v1 import trust_service_pb2 as wire
from hansa.v1 import trust_service_pb2_grpc


class TrustServicer(trust_service_pb2_grpc.TrustServiceServicer):
    """Parse, one call, convert."""

    def __init__(self, calls: Calls) -> None:
        """Take what runs transactions."""
        self._calls = calls

    async def GetMetadata(
        self, request: wire.GetMetadataRequest, context: Context
    ) -> AsyncIterator[wire.GetMetadataResponse]:
        """Send a role's metadata in chunks."""
        content = await self._calls.read(lambda session: metadata_file(session, request.role, request.version))
        for chunk in _chunks(content):
            yield wire.GetMetadataResponse(chunk=chunk)

    async def GetTarget(
        self, request: wire.GetTargetRequest, context: Context
    ) -> AsyncIterator[wire.GetTargetResponse]:
        """Send a target in chunks."""
        content = await self._calls.read(lambda session: target_file(session, request.sha256))
        for chunk in _chunks(content):
            yield wire.GetTargetResponse(chunk=chunk)


def _chunks(content: bytes) -> Iterator[bytes]:
    # An empty file is one empty chunk, not no answer.
    return (content[start : start + CHUNK_BYTES] for start in range(0, max(len(content), 1), CHUNK_BYTES))
