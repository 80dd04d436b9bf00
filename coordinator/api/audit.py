"""The part of ``AdminService`` that shows the audit log as it is hashed, for whoever verifies it."""

# Names and signatures of methods are the protocol's.
# ruff: noqa: N802, ARG002

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy.orm import Session

from coordinator.api.calls import Calls
from coordinator.api.guard import Context
from coordinator.api.messages import audit_leaf_message, audit_message
from coordinator.api.pages import number_page_of, token_of
from coordinator.services.desk import Changed, Desk
from coordinator.services.witnessing import LogKeeper, published_checkpoint
from coordinator.store.audit import AuditRepository
from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import DEFAULT_PAGE, MAX_PAGE
from hansa.contract.notes import MOST_LEAVES
from hansa.v1 import admin_service_pb2 as wire
from hansa.v1 import admin_service_pb2_grpc


class AuditMethods(admin_service_pb2_grpc.AdminServiceServicer):
    """Parse, one call, convert."""

    def __init__(self, desk: Desk, keeper: LogKeeper) -> None:
        """Take what runs transactions, and what checkpoints are made with."""
        self._desk = desk
        self._calls = Calls(desk.database, desk.clock)
        self._keeper = keeper

    async def ListAudit(self, request: wire.ListAuditRequest, context: Context) -> wire.ListAuditResponse:
        """Return what was done, newest first."""
        page = number_page_of(request)
        found = await self._calls.read(lambda session: AuditRepository(session).page(page))
        return wire.ListAuditResponse(
            entries=[audit_message(entry) for entry in found.items], next_page_token=token_of(found.last)
        )

    async def ListAuditLeaves(
        self, request: wire.ListAuditLeavesRequest, context: Context
    ) -> wire.ListAuditLeavesResponse:
        """Return leaves from a place on, oldest first."""
        start, limit = _bounded(request.start, "start"), min(request.limit or DEFAULT_PAGE, MAX_PAGE)
        found = await self._calls.read(lambda session: AuditRepository(session).leaves(start, limit))
        return wire.ListAuditLeavesResponse(leaves=[audit_leaf_message(leaf) for leaf in found])

    async def GetCheckpoint(self, request: wire.GetCheckpointRequest, context: Context) -> wire.GetCheckpointResponse:
        """Return the newest checkpoint that enough witnesses have cosigned, else the newest."""
        now = self._desk.clock()
        note = await self._desk.commit(lambda session: (published_checkpoint(session, self._keeper, now), Changed()))
        if note is None:
            raise HansaError(Reason.LOG_ENTRY_UNKNOWN, "The audit log is empty.")
        return wire.GetCheckpointResponse(checkpoint=note.to_bytes())

    async def ProveInclusion(
        self, request: wire.ProveInclusionRequest, context: Context
    ) -> wire.ProveInclusionResponse:
        """Prove that a leaf is among the first so many."""
        index, size = _bounded(request.index, "index"), _bounded(request.size, "size")

        def work(session: Session) -> wire.ProveInclusionResponse:
            audit = AuditRepository(session)
            proof = _proof(audit, size, lambda: audit.inclusion(index, size))
            return wire.ProveInclusionResponse(leaf_hash=audit.leaf_hash(index) or b"", proof=proof)

        return await self._calls.read(work)

    async def ProveConsistency(
        self, request: wire.ProveConsistencyRequest, context: Context
    ) -> wire.ProveConsistencyResponse:
        """Prove that the log only grew between two sizes."""
        old, new = _bounded(request.old_size, "old_size"), _bounded(request.new_size, "new_size")

        def work(session: Session) -> wire.ProveConsistencyResponse:
            audit = AuditRepository(session)
            return wire.ProveConsistencyResponse(proof=_proof(audit, new, lambda: audit.consistency(old, new)))

        return await self._calls.read(work)


def _bounded(number: int, field: str) -> int:
    # Beyond, no database could look for it.
    if number > MOST_LEAVES:
        raise HansaError(Reason.LOG_ENTRY_UNKNOWN, field=field)
    return number


def _proof(audit: AuditRepository, size: int, prove: Callable[[], Sequence[bytes]]) -> Sequence[bytes]:
    if size > audit.size():
        raise HansaError(Reason.LOG_ENTRY_UNKNOWN, field="size")
    try:
        return prove()
    except ValueError as error:
        raise HansaError(Reason.LOG_ENTRY_UNKNOWN) from error
