"""The event outbox, the command cursor, and what is kept of the coordinator; inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from hansa.contract.attach import CoordinatorSeen, CoordinatorTold
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
                coordinator_generation=1,
                event_acked=0,
                event_base_seq=0,
                event_base_hash=CHAIN_START,
                reconciled_generation=1,
            )
        )


def is_reconciled(session: Session) -> bool:
    """Say whether this store knows what it released; one that was restored from a backup may have forgotten it."""
    row = store_row(session)
    return row.reconciled_generation >= row.generation


def was_restored(session: Session) -> bool:
    """Say whether the coordinator's store was ever restored from a backup, and may have forgotten what it was told."""
    return store_row(session).coordinator_generation > 1


def event_head(session: Session) -> Head:
    """Return the last event's place in the chain."""
    last = session.scalar(select(EventRow).order_by(EventRow.seq.desc()).limit(1))
    return _base(session) if last is None else Head(last.seq, last.hash)


def hash_at(session: Session, seq: int) -> bytes:
    """Return the hash of event ``seq``; empty if there is none."""
    base = _base(session)
    if seq == base.seq:
        return base.hash
    row = session.get(EventRow, seq)
    return b"" if row is None else row.hash


def _base(session: Session) -> Head:
    row = store_row(session)
    return Head(row.event_base_seq, row.event_base_hash)


def begin_anew(session: Session, base: Head) -> None:
    """Drop all events and begin behind ``base``: what a restored store tells is made anew."""
    session.execute(delete(EventRow))
    row = store_row(session)
    row.event_base_seq, row.event_base_hash = base.seq, base.hash
    row.event_acked = base.seq
    session.flush()


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
    acked = _last(session, EventRow.acked_at.is_not(None))
    old = _last(session, EventRow.acked_at < before)
    below = prune_below(head=event_head(session).seq, acked=acked, old=old)
    done = session.execute(delete(EventRow).where(EventRow.seq < below).returning(EventRow.seq))
    return len(done.all())


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


def coordinator_seen(session: Session) -> CoordinatorSeen:
    """Return what is kept of the coordinator."""
    row = store_row(session)
    return CoordinatorSeen(
        uuid=row.coordinator_uuid,
        generation=row.coordinator_generation,
        acked=row.event_acked,
        commands=command_cursor(session),
    )


def keep_acked(session: Session, upto_seq: int) -> None:
    """Record that the coordinator has applied the events up to ``upto_seq``."""
    row = store_row(session)
    row.event_acked = max(row.event_acked, upto_seq)


def keep_coordinator(session: Session, told: CoordinatorTold, commands: Head) -> None:
    """Record whom the node has attached to, and where it goes on with the commands."""
    row = store_row(session)
    row.coordinator_uuid, row.coordinator_generation = told.uuid, told.generation
    # Not what it claims beyond what there is: it will say itself what that means.
    row.event_acked = min(told.event_cursor.seq, event_head(session).seq)
    move_command_cursor(session, commands)
