"""The coordinator's audit log, as an auditor reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from hansa.contract.limits import MAX_PAGE
from hansa.sdk.connection import Connection
from hansa.v1 import admin_service_pb2 as wire
from hansa.v1 import admin_service_pb2_grpc


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf as it is hashed, and what the coordinator says of the people in it.

    ``index`` starts at 0; in lists of acts the same entry has the number
    ``index + 1``. Without ``salt`` the words were erased.
    """

    index: int
    body: bytes
    number: int
    at: datetime
    actor: str
    action: str
    subject: str
    salt: bytes


class AuditClient:
    """Leaves, checkpoints and proofs. Nothing that comes back has been verified.

    Every method raises ``RemoteError``; ``PERMISSION_DENIED`` where the caller
    is neither auditor nor federation operator.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = admin_service_pb2_grpc.AdminServiceStub(connection.channel)

    async def leaves(self, start: int) -> Sequence[Leaf]:
        """Return the next leaves from ``start`` on, oldest first; empty at the end."""
        request = wire.ListAuditLeavesRequest(start=start, limit=MAX_PAGE)
        answer = await self._connection.call(self._stub.ListAuditLeaves, request)
        return [_leaf(message) for message in answer.leaves]

    async def checkpoint(self) -> bytes:
        """Return the newest checkpoint that enough witnesses have cosigned, else the newest."""
        answer = await self._connection.call(self._stub.GetCheckpoint, wire.GetCheckpointRequest())
        return answer.checkpoint

    async def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """Return the proof that leaf ``index`` is among the first ``size``."""
        request = wire.ProveInclusionRequest(index=index, size=size)
        answer = await self._connection.call(self._stub.ProveInclusion, request)
        return tuple(answer.proof)

    async def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """Return the proof that the log only grew from ``old`` to ``new``."""
        request = wire.ProveConsistencyRequest(old_size=old, new_size=new)
        answer = await self._connection.call(self._stub.ProveConsistency, request)
        return tuple(answer.proof)


def _leaf(message: wire.AuditLeaf) -> Leaf:
    entry = message.entry
    return Leaf(
        index=message.index,
        body=message.body,
        number=entry.index,
        at=entry.at.ToDatetime(),
        actor=entry.actor,
        action=entry.action,
        subject=entry.subject,
        salt=message.salt,
    )
