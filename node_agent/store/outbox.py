"""The event outbox and the command cursor, inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from hansa.contract.digests import CHAIN_START
from hansa.contract.outbox import Head
from hansa.contract.retention import prune_below
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


def note_acknowledged(session: Session, upto: int, now: datetime) -> None:
    """Write down that the coordinator has the events up to ``upto``, and no later ones; their time of rest begins.

    A coordinator that was restored from a backup has fewer than it had: what
    it lacks is kept as if it had never been acknowledged.
    """
    session.execute(update(EventRow).where(EventRow.seq <= upto, EventRow.acked_at.is_(None)).values(acked_at=now))
    session.execute(update(EventRow).where(EventRow.seq > upto, EventRow.acked_at.is_not(None)).values(acked_at=None))


def prune_events(session: Session, before: datetime) -> int:
    """Delete events that were acknowledged before ``before`` and that nobody can ask for; return how many."""
    acked = last_acknowledged(session)
    old = _last(session, EventRow.acked_at < before)
    below = prune_below(head=event_head(session).seq, acked=acked, old=old)
    done = session.execute(delete(EventRow).where(EventRow.seq < below).returning(EventRow.seq))
    return len(done.all())


def last_acknowledged(session: Session) -> int:
    """Return the last event that is noted as acknowledged; 0 for none."""
    return _last(session, EventRow.acked_at.is_not(None))


def unsent_bytes(session: Session, after: int) -> int:
    """Return the size of the events that follow ``after``: what the node owes."""
    return session.scalar(select(func.sum(func.length(EventRow.body))).where(EventRow.seq > after)) or 0


def _last(session: Session, condition: ColumnElement[bool]) -> int:
    return session.scalar(select(func.max(EventRow.seq)).where(condition)) or 0


def command_cursor(session: Session) -> Head:
    """Return the last command that was applied."""
    row = store_row(session)
    return Head(row.command_seq, row.command_hash)


def move_command_cursor(session: Session, head: Head) -> None:
    """Record that the command at ``head`` is applied; in the transaction that applies it."""
    row = store_row(session)
    row.command_seq, row.command_hash = head.seq, head.hash
