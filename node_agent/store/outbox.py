"""The event outbox and the command cursor, inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from hansa.contract.digests import CHAIN_START
from hansa.contract.outbox import Head
from node_agent.store.models import EventRow, StoreRow

_ONLY_ROW: Final = 1


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it is sent: the bytes as stored and hashed."""

    seq: int
    prev_hash: bytes
    body: bytes


def store_row(session: Session) -> StoreRow:
    """Return the store's own row.

    Raises:
        sqlalchemy.exc.NoResultFound: ``found_store`` has not run.
    """
    return session.get_one(StoreRow, _ONLY_ROW)


def found_store(session: Session, store_uuid: str) -> None:
    """Give a new store its identity; do nothing to one that has it."""
    if session.get(StoreRow, _ONLY_ROW) is None:
        session.add(
            StoreRow(
                id=_ONLY_ROW,
                store_uuid=store_uuid,
                generation=1,
                command_seq=0,
                command_hash=CHAIN_START,
                coordinator_uuid="",
            )
        )


def event_head(session: Session) -> Head:
    """Return the last event's place in the chain."""
    last = session.scalar(select(EventRow).order_by(EventRow.seq.desc()).limit(1))
    return Head() if last is None else Head(last.seq, last.hash)


def hash_at(session: Session, seq: int) -> bytes:
    """Return the hash of event ``seq``; empty if there is none."""
    if seq == 0:
        return CHAIN_START
    row = session.get(EventRow, seq)
    return b"" if row is None else row.hash


def append_event(session: Session, body: bytes, now: datetime) -> None:
    """Append ``body`` to the chain; it is sent after the commit."""
    head = event_head(session)
    after = head.after(body)
    session.add(EventRow(seq=after.seq, prev_hash=head.hash, hash=after.hash, body=body, created_at=now))
    session.flush()


def events_after(session: Session, seq: int, limit: int) -> Sequence[StoredEvent]:
    """Return at most ``limit`` events that follow ``seq``, in order."""
    rows = session.scalars(select(EventRow).where(EventRow.seq > seq).order_by(EventRow.seq).limit(limit))
    return [StoredEvent(row.seq, row.prev_hash, row.body) for row in rows]


def command_cursor(session: Session) -> Head:
    """Return the last command that was applied."""
    row = store_row(session)
    return Head(row.command_seq, row.command_hash)


def move_command_cursor(session: Session, head: Head) -> None:
    """Record that the command at ``head`` is applied; in the transaction that applies it."""
    row = store_row(session)
    row.command_seq, row.command_hash = head.seq, head.hash
