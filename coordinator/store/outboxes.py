"""The two chains of a node: commands towards it, events from it.

Works inside the caller's transaction, never commits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from coordinator.store.job_models import CommandRow, EventRow
from coordinator.store.people_models import NodeRow
from hansa.contract.digests import CHAIN_START
from hansa.contract.outbox import Head


@dataclass(frozen=True, slots=True)
class StoredCommand:
    """A command as it is sent: number, hash of the one before, bytes."""

    seq: int
    prev_hash: bytes
    body: bytes


class CommandRepository:
    """The command outbox of each node."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def append(self, node: str, body: bytes, now: datetime) -> None:
        """Add ``body`` to the outbox of ``node``."""
        # Two transactions must not both take the same number: the node's row
        # is what they wait for. (SQLite has one writer and ignores the lock.)
        self._session.execute(select(NodeRow.node).where(NodeRow.node == node).with_for_update())
        head = self.head(node)
        after = head.after(body)
        self._session.add(
            CommandRow(
                node=node,
                seq=after.seq,
                prev_hash=head.hash,
                hash=after.hash,
                body=body,
                created_at=now,
                acked=False,
            )
        )
        self._session.flush()

    def head(self, node: str) -> Head:
        """Return the last entry of the outbox of ``node``."""
        row = self._session.execute(
            select(CommandRow.seq, CommandRow.hash)
            .where(CommandRow.node == node)
            .order_by(CommandRow.seq.desc())
            .limit(1)
        ).one_or_none()
        return Head() if row is None else Head(row.seq, row.hash)

    def hash_at(self, node: str, seq: int) -> bytes:
        """Return the hash of entry ``seq``; empty if there is none."""
        if seq == 0:
            return CHAIN_START
        found = self._session.scalar(select(CommandRow.hash).where(CommandRow.node == node, CommandRow.seq == seq))
        return found or b""

    def pending(self, node: str, *, after: int, limit: int) -> list[StoredCommand]:
        """Return up to ``limit`` entries that come after number ``after``, in order."""
        rows = self._session.execute(
            select(CommandRow.seq, CommandRow.prev_hash, CommandRow.body)
            .where(CommandRow.node == node, CommandRow.seq > after)
            .order_by(CommandRow.seq)
            .limit(limit)
        )
        return [StoredCommand(row.seq, row.prev_hash, row.body) for row in rows]

    def acknowledge(self, node: str, upto_seq: int) -> None:
        """Mark the entries up to ``upto_seq`` as applied by the node."""
        self._session.execute(
            update(CommandRow)
            .where(CommandRow.node == node, CommandRow.seq <= upto_seq, CommandRow.acked.is_(False))
            .values(acked=True)
        )


class EventRepository:
    """What was received of each node's outbox; the cursor stands in the node's row."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def append(self, node: str, head: Head, body: bytes) -> None:
        """Keep the event that has brought the chain of ``node`` to ``head``."""
        self._session.add(EventRow(node=node, seq=head.seq, hash=head.hash, body=body))
