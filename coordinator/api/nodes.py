"""``NodeService``: sessions, uploads and renewals. Only nodes get here (METHOD_POLICY)."""

# Names and signatures of methods are the protocol's.
# ruff: noqa: N802, ARG002

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

from sqlalchemy.orm import Session

from coordinator.api.caller import current_caller
from coordinator.api.calls import request_id_of
from coordinator.api.frames import coordinator_frame, read_frames
from coordinator.api.guard import Context
from coordinator.api.rates import Memory
from coordinator.services.collection import Announced, Upload, admit, collect
from coordinator.services.enrolment import Issuer, renew_certificate
from coordinator.services.sessions import Sessions
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId, is_run_id
from hansa.contract.sealing import SEALED_BYTES
from hansa.runtime.logging import remember
from hansa.v1 import node_service_pb2 as wire
from hansa.v1 import node_service_pb2_grpc

# Eight uploads of the largest size at a time; small ones, which nearly all are, by the thousand.
UPLOADS_BYTES: Final = 8 * SEALED_BYTES


class NodeServicer(node_service_pb2_grpc.NodeServiceServicer):
    """The node is always the certificate's, never one that a message names."""

    def __init__(self, sessions: Sessions, issuer: Issuer) -> None:
        """Take the open sessions, and what certificates are made with."""
        self._sessions = sessions
        self._desk = sessions.desk
        self._issuer = issuer
        self._memory = Memory(UPLOADS_BYTES)

    async def Connect(
        self, request_iterator: AsyncIterator[wire.NodeFrame], context: Context
    ) -> AsyncIterator[wire.CoordinatorFrame]:
        """Serve one session until it ends."""
        caller = current_caller()
        frames = read_frames(request_iterator)
        session = self._sessions.open(NodeId(caller.name), frames, not_after=caller.not_after)
        async with aclosing(session.outgoing()) as outgoing:
            async for frame in outgoing:
                yield coordinator_frame(frame)

    async def UploadSummary(
        self, request_iterator: AsyncIterator[wire.UploadSummaryRequest], context: Context
    ) -> wire.UploadSummaryResponse:
        """Store a released summary; the same bytes again are welcome."""
        upload = _begin(await anext(request_iterator, None))
        if is_run_id(upload.announced.run_id):
            remember(run_id=upload.announced.run_id)
        # Before the first chunk: nobody fills our memory for a run that does not wait for it.
        try:
            await admit(self._desk, upload.announced)
            with self._memory.holding(upload.announced.size):
                async for part in request_iterator:
                    if part.WhichOneof("part") != "chunk":
                        raise HansaError(Reason.PROTOCOL_VIOLATION, "A chunk was due.", field="part")
                    upload.add(part.chunk)
                await collect(self._desk, upload)
        except HansaError as error:
            if error.reason is Reason.SUMMARY_CONFLICT:
                self._sessions.cut(upload.announced.node, Reason.NODE_QUARANTINED)
            raise
        return wire.UploadSummaryResponse()

    async def RenewCertificate(
        self, request: wire.RenewCertificateRequest, context: Context
    ) -> wire.RenewCertificateResponse:
        """Return a certificate for a fresh key; the key itself makes a repeat safe."""
        request_id_of(request)
        node, now = NodeId(current_caller().name), self._desk.clock()

        def work(session: Session) -> str:
            return renew_certificate(session, self._issuer, node=node, csr_pem=request.csr_pem, now=now)

        return wire.RenewCertificateResponse(certificate_pem=await self._desk.read(work))


def _begin(first: wire.UploadSummaryRequest | None) -> Upload:
    if first is None or first.WhichOneof("part") != "header":
        raise HansaError(Reason.PROTOCOL_VIOLATION, "The header was due.", field="part")
    header = first.header
    return Upload(
        Announced(
            node=current_caller().name,
            run_id=header.run_id,
            attempt=header.attempt,
            digest=header.digest,
            size=header.size,
        )
    )
