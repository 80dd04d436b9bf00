"""Carries a released summary to the coordinator, in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import grpc

from hansa.contract.limits import CHUNK_BYTES
from hansa.sdk.errors import remote_error
from hansa.v1 import node_service_pb2, node_service_pb2_grpc
from node_agent.airlock.released import ReleasedSummary

_UPLOAD_SECONDS: Final = 60.0


class SummaryUpload:
    """Sends over one channel; takes ``ReleasedSummary`` and nothing else."""

    def __init__(self, stub: node_service_pb2_grpc.NodeServiceAsyncStub) -> None:
        """Take a stub of the coordinator's NodeService."""
        self._stub = stub

    async def send(self, released: ReleasedSummary) -> None:
        """Return once the coordinator has stored ``released``; a repeat is harmless.

        Raises:
            HansaError: it is away, or refused.
        """
        try:
            await self._stub.UploadSummary(_messages(released), timeout=_UPLOAD_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise remote_error(error) from error


def _messages(released: ReleasedSummary) -> Iterator[node_service_pb2.UploadSummaryRequest]:
    header = node_service_pb2.UploadSummaryRequest.Header(
        run_id=released.run_id,
        attempt=released.attempt,
        execution=released.execution,
        digest=released.digest,
        size=len(released.summary),
    )
    yield node_service_pb2.UploadSummaryRequest(header=header)
    for start in range(0, len(released.summary), CHUNK_BYTES):
        yield node_service_pb2.UploadSummaryRequest(chunk=released.summary[start : start + CHUNK_BYTES])
