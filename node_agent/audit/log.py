"""The audit log itself: a Merkle tree (RFC 9162) that the caller's transaction lets grow.

An entry is committed with the decision that it records or not at all: where
``append`` fails, the decision is undone.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from sqlalchemy import bindparam, delete, func, select, tuple_
from sqlalchemy.orm import Session

from hansa.contract.digests import canonical, keyed_hash
from hansa.contract.merkle import (
    Frontier,
    HashAt,
    consistency_proof,
    hashes_for,
    inclusion_proof,
    leaf_hash,
    root_at,
)
from node_agent.audit.entries import Action, Entry
from node_agent.store.models import AuditLeafRow, AuditNodeRow, AuditSubjectRow, LoggedReleaseRow

T = TypeVar("T")

VERSION: Final = 1
_SALT_BYTES: Final = 32
# Made once: a proof is asked for more often than SQLAlchemy can compose its statement.
_LEAF_HASHES: Final = select(AuditLeafRow.index, AuditLeafRow.leaf_hash).where(
    AuditLeafRow.index.in_(bindparam("indices", expanding=True))
)
_NODE_HASHES: Final = select(AuditNodeRow.level, AuditNodeRow.index, AuditNodeRow.hash).where(
    tuple_(AuditNodeRow.level, AuditNodeRow.index).in_(bindparam("places", expanding=True))
)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A stored entry. ``subjects`` are the texts that have not been erased."""

    index: int
    at: datetime
    body: bytes
    leaf_hash: bytes
    subjects: Mapping[str, str]


def append(
    session: Session, entry: Entry, now: datetime, *, random: Callable[[int], bytes] = secrets.token_bytes
) -> int:
    """Append ``entry`` inside the caller's transaction; return its index.

    Args:
        session: the transaction of the decision that ``entry`` records.
        entry: what was decided.
        now: aware time.
        random: returns that many random bytes, for the salts.
    """
    index = size_of(session)
    salts = {name: random(_SALT_BYTES) for name in entry.subjects}
    hashes = {name: keyed_hash(salts[name], name, text) for name, text in entry.subjects.items()}
    at = now.astimezone(UTC)
    body = canonical(
        {
            "v": VERSION,
            "at": at_text(at),
            "action": entry.action.value,
            "facts": dict(entry.facts),
            "subjects": hashes,
        }
    )
    leaf, *above = _read(session, lambda hash_at: Frontier.load(index, hash_at)).append(leaf_hash(body))
    session.add(AuditLeafRow(index=index, at=at, body=body, leaf_hash=leaf.hash))
    session.add_all(AuditNodeRow(level=node.level, index=node.index, hash=node.hash) for node in above)
    session.add_all(
        AuditSubjectRow(index=index, name=name, salt=salts[name], text=text) for name, text in entry.subjects.items()
    )
    if entry.action is Action.SUMMARY_RELEASED:
        run_id, attempt = str(entry.facts["run"]), int(entry.facts["attempt"])
        session.add(LoggedReleaseRow(index=index, run_id=run_id, attempt=attempt, told=False))
    session.flush()
    return index


def at_text(at: datetime) -> str:
    """Return a time, aware and in UTC, as the entries have it."""
    return at.isoformat(timespec="microseconds")


def size_of(session: Session) -> int:
    """Return how many entries there are."""
    last = session.scalar(select(func.max(AuditLeafRow.index)))
    return 0 if last is None else last + 1


def root_of(session: Session, size: int) -> bytes:
    """Return the root over the first ``size`` entries, from the stored hashes."""
    return _read(session, lambda hash_at: root_at(size, hash_at))


def prove_inclusion(session: Session, index: int, size: int) -> tuple[bytes, ...]:
    """Return the proof that entry ``index`` is among the first ``size``.

    Raises:
        ValueError: there is no such entry.
    """
    return _read(session, lambda hash_at: inclusion_proof(index, size, hash_at))


def prove_consistency(session: Session, old: int, new: int) -> tuple[bytes, ...]:
    """Return the proof that the log only grew between two sizes.

    Raises:
        ValueError: ``old`` is over ``new``.
    """
    return _read(session, lambda hash_at: consistency_proof(old, new, hash_at))


def _read(session: Session, compute: Callable[[HashAt], T]) -> T:
    """Return what ``compute`` makes of the stored hashes.

    Raises:
        KeyError: a hash is missing; the log is damaged.
    """
    wanted = hashes_for(compute)
    held: dict[tuple[int, int], bytes] = {}
    bottom = [index for level, index in wanted if level == 0]
    if bottom:
        rows = session.execute(_LEAF_HASHES, {"indices": bottom})
        held.update({(0, index): found for index, found in rows})
    above = [place for place in wanted if place[0]]
    if above:
        nodes = session.execute(_NODE_HASHES, {"places": above})
        held.update({(level, index): found for level, index, found in nodes})
    return compute(lambda level, index: held[level, index])


def leaves(session: Session, start: int, end: int) -> Sequence[Leaf]:
    """Return the entries with ``start <= index < end``, in order."""
    texts: dict[int, dict[str, str]] = {}
    for row in session.scalars(_subjects(start, end)):
        texts.setdefault(row.index, {})[row.name] = row.text
    columns = (AuditLeafRow.index, AuditLeafRow.at, AuditLeafRow.body, AuditLeafRow.leaf_hash)
    query = select(*columns).where(AuditLeafRow.index >= start, AuditLeafRow.index < end)
    return [
        Leaf(index, at, body, stored, texts.get(index, {}))
        for index, at, body, stored in session.execute(query.order_by(AuditLeafRow.index))
    ]


def subjects(session: Session, start: int, end: int) -> Sequence[AuditSubjectRow]:
    """Return what has not been erased of these entries' subjects, with the salts."""
    return session.scalars(_subjects(start, end)).all()


def _subjects(start: int, end: int) -> Any:
    return select(AuditSubjectRow).where(AuditSubjectRow.index >= start, AuditSubjectRow.index < end)


def erase(session: Session, *, index: int | None = None, person: str = "") -> Sequence[int]:
    """Erase the texts and salts of subjects; return the indexes of the entries that had any.

    The tree, its root and all proofs stay as they are.

    Args:
        session: the transaction.
        index: erases one entry's.
        person: erases those of every entry that names this person, by name or in a reason.
    """
    word = re.compile(rf"(?<![a-z0-9._-]){re.escape(person)}(?![a-z0-9_-]|\.[a-z0-9])")
    query = select(AuditSubjectRow.index, AuditSubjectRow.text).order_by(AuditSubjectRow.index)
    if index is not None:
        query = query.where(AuditSubjectRow.index == index)
    else:
        query = query.where(AuditSubjectRow.text.contains(person, autoescape=True))
    rows = session.execute(query).all()
    found = sorted({number for number, text in rows if index is not None or word.search(text)})
    for number in found:
        session.execute(delete(AuditSubjectRow).where(AuditSubjectRow.index == number))
    return found


def policy_in_log(session: Session) -> str:
    """Return the digest of the policy that was last recorded; empty if none was."""
    # Canonical JSON: quotes inside of a value are escaped, so that only the key can look like this.
    mark = f'"action":"{Action.POLICY_CHANGED.value}"'.encode()
    body = session.scalar(
        select(AuditLeafRow.body)
        .where(func.instr(AuditLeafRow.body, mark) > 0)
        .order_by(AuditLeafRow.index.desc())
        .limit(1)
    )
    return "" if body is None else str(json.loads(body)["facts"]["policy"])
