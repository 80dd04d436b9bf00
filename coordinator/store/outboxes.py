"""The two chains of a node: commands towards it, events from it.

Works inside the caller's transaction, never commits. Transactions that append
run one after the other (``services.desk``), so that no number is taken twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from coordinator.store.job_models import COMMANDS, EVENTS
from hansa.contract.digests import CHAIN_START
from hansa.contract.outbox import Head

_HEAD: Final = (
    select(COMMANDS.c.seq, COMMANDS.c.hash)
    .where(COMMANDS.c.node == bindparam("node"))
    .order_by(COMMANDS.c.seq.desc())
    .limit(1)
)
_BASE: Final = (
    select(COMMANDS.c.seq, COMMANDS.c.hash)
    .where(COMMANDS.c.node == bindparam("node"), COMMANDS.c.acked)
    .order_by(COMMANDS.c.seq.desc())
    .limit(1)
)
_PENDING: Final = (
    select(COMMANDS.c.seq, COMMANDS.c.prev_hash, COMMANDS.c.body)
    .where(COMMANDS.c.node == bindparam("node"), COMMANDS.c.seq > bindparam("after"))
    .order_by(COMMANDS.c.seq)
    .limit(bindparam("most"))
)
_ACKNOWLEDGE: Final = (
    update(COMMANDS)
    .where(COMMANDS.c.node == bindparam("of_node"), COMMANDS.c.seq <= bindparam("upto"), COMMANDS.c.acked.is_(False))
    .values(acked=True)
)


@dataclass(frozen=True, slots=True)
class StoredCommand:
    """A command as it is sent: number, hash of the one before, bytes."""

    seq: int
    prev_hash: bytes
    body: bytes


class CommandRepository:
    """The command outbox of each node."""

    def __init__(self, session: Session) -> None:
        self._connection = session.connection()

    def append(self, node: str, body: bytes, now: datetime) -> None:
        """Add ``body`` to the outbox of ``node``."""
        head = self.head(node)
        after = head.after(body)
        values = {
            "node": node,
            "seq": after.seq,
            "prev_hash": head.hash,
            "hash": after.hash,
            "body": body,
            "created_at": now,
            "acked": False,
        }
        self._connection.execute(insert(COMMANDS), values)

    def head(self, node: str) -> Head:
        """Return the last entry of the outbox of ``node``."""
        row = self._connection.execute(_HEAD, {"node": node}).one_or_none()
        return Head() if row is None else Head(row.seq, row.hash)

    def base(self, node: str) -> Head:
        """Return the last entry that ``node`` has acknowledged; the start of the chain if none."""
        row = self._connection.execute(_BASE, {"node": node}).one_or_none()
        return Head() if row is None else Head(row.seq, row.hash)

    def hash_at(self, node: str, seq: int) -> bytes:
        """Return the hash of entry ``seq``; empty if there is none."""
        if seq == 0:
            return CHAIN_START
        query = select(COMMANDS.c.hash).where(COMMANDS.c.node == node, COMMANDS.c.seq == seq)
        found: bytes | None = self._connection.scalar(query)
        return found or b""

    def pending(self, node: str, *, after: int, limit: int) -> list[StoredCommand]:
        """Return up to ``limit`` entries that come after number ``after``, in order."""
        rows = self._connection.execute(_PENDING, {"node": node, "after": after, "most": limit})
        return [StoredCommand(row.seq, row.prev_hash, row.body) for row in rows]

    def acknowledge(self, node: str, upto_seq: int) -> None:
        """Mark the entries up to ``upto_seq`` as applied by the node."""
        self._connection.execute(_ACKNOWLEDGE, {"of_node": node, "upto": upto_seq})

    def forget_acknowledgements(self, node: str) -> None:
        """Send everything again: the node came with a new store."""
        self._connection.execute(update(COMMANDS).where(COMMANDS.c.node == node).values(acked=False))


class EventRepository:
    """What was received of each node's outbox; the cursor stands in the node's row."""

    def __init__(self, session: Session) -> None:
        self._connection = session.connection()

    def append(self, node: str, received: Sequence[tuple[Head, bytes]]) -> None:
        """Keep events, each with the head that the chain of ``node`` came to by it."""
        if received:
            rows = [{"node": node, "seq": head.seq, "hash": head.hash, "body": body} for head, body in received]
            self._connection.execute(insert(EVENTS), rows)
