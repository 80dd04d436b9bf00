"""The two chains of a node: commands towards it, events from it.

Works inside the caller's transaction, never commits. Transactions that append
run one after the other (``services.desk``), so that no number is taken twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.orm import Session

from coordinator.store.job_models import COMMANDS, EVENTS
from hansa.contract.digests import CHAIN_START
from hansa.contract.outbox import Head
from hansa.contract.retention import prune_below

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
# Entries are acknowledged in order: only those that wait lie between this one and the head.
_LAST_ACKED: Final = (
    select(COMMANDS.c.seq)
    .where(COMMANDS.c.node == bindparam("node"), COMMANDS.c.acked.is_(True))
    .order_by(COMMANDS.c.seq.desc())
    .limit(1)
)
_ACKNOWLEDGE: Final = (
    update(COMMANDS)
    .where(COMMANDS.c.node == bindparam("of_node"), COMMANDS.c.seq <= bindparam("upto"), COMMANDS.c.acked.is_(False))
    .values(acked=True, acked_at=bindparam("at"))
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

    def waiting(self, node: str) -> int:
        """Return how many entries the node has not acknowledged."""
        acked: int | None = self._connection.scalar(_LAST_ACKED, {"node": node})
        return self.head(node).seq - (acked or 0)

    def acknowledge(self, node: str, upto_seq: int, now: datetime) -> None:
        """Mark the entries up to ``upto_seq`` as applied by the node."""
        self._connection.execute(_ACKNOWLEDGE, {"of_node": node, "upto": upto_seq, "at": now})

    def owe(self, node: str, after: int) -> None:
        """Forget that commands after number ``after`` were acknowledged: the node was restored and lacks them."""
        lacking = (COMMANDS.c.node == node, COMMANDS.c.seq > after, COMMANDS.c.acked.is_(True))
        self._connection.execute(update(COMMANDS).where(*lacking).values(acked=False, acked_at=None))

    def prune(self, before: datetime) -> int:
        """Delete commands that were acknowledged before ``before`` and that nobody can ask for; return how many."""
        last = func.max(COMMANDS.c.seq)
        known = select(
            COMMANDS.c.node,
            last.label("head"),
            last.filter(COMMANDS.c.acked.is_(True)).label("acked"),
            last.filter(COMMANDS.c.acked_at < before).label("old"),
        ).group_by(COMMANDS.c.node)
        pruned = 0
        for row in self._connection.execute(known).all():
            below = prune_below(head=row.head, acked=row.acked or 0, old=row.old or 0)
            gone = delete(COMMANDS).where(COMMANDS.c.node == row.node, COMMANDS.c.seq < below)
            pruned += self._connection.execute(gone).rowcount
        return pruned


class EventRepository:
    """What was received of each node's outbox; the cursor stands in the node's row."""

    def __init__(self, session: Session) -> None:
        self._connection = session.connection()

    def append(self, node: str, received: Sequence[tuple[Head, bytes]]) -> None:
        """Keep events, each with the head that the chain of ``node`` came to by it."""
        if received:
            rows = [{"node": node, "seq": head.seq, "hash": head.hash, "body": body} for head, body in received]
            self._connection.execute(insert(EVENTS), rows)
