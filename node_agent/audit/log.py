"""The audit log itself: a Merkle tree (RFC 9162) that the caller's transaction lets grow.

An entry is committed with the decision that it records or not at all: where
``append`` fails, the decision is undone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from hansa.contract.digests import canonical
from hansa.contract.merkle import Frontier, consistency_proof, inclusion_proof, leaf_hash, root_at
from node_agent.audit.entries import Action, Entry
from node_agent.store.models import AuditLeafRow, AuditNodeRow, AuditSubjectRow

VERSION: Final = 1
_SALT_BYTES: Final = 32


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
    hashes = {name: subject_hash(salts[name], name, text) for name, text in entry.subjects.items()}
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
    leaf, *above = Frontier.load(index, hashes_of(session)).append(leaf_hash(body))
    session.add(AuditLeafRow(index=index, at=at, body=body, leaf_hash=leaf.hash))
    session.add_all(AuditNodeRow(level=node.level, index=node.index, hash=node.hash) for node in above)
    session.add_all(
        AuditSubjectRow(index=index, name=name, salt=salts[name], text=text) for name, text in entry.subjects.items()
    )
    session.flush()
    return index


def at_text(at: datetime) -> str:
    """Return a time, aware and in UTC, as the entries have it."""
    return at.isoformat(timespec="microseconds")


def subject_hash(salt: bytes, name: str, text: str) -> str:
    """Return what the tree holds of a subject's text: ``hmac-sha256:<64 hex>``.

    Args:
        salt: the leaf's own for this subject; who has it can try texts.
        name: which subject of the entry it is.
        text: a person's name, or a person's words.
    """
    mac = hmac.new(salt, f"{name}\0{text}".encode(), hashlib.sha256)
    return f"hmac-sha256:{mac.hexdigest()}"


def size_of(session: Session) -> int:
    """Return how many entries there are."""
    last = session.scalar(select(func.max(AuditLeafRow.index)))
    return 0 if last is None else last + 1


def hashes_of(session: Session) -> Callable[[int, int], bytes]:
    """Return how the stored subtrees are read.

    Calling it raises ``sqlalchemy.exc.NoResultFound`` for one that is not there.
    """

    def hash_at(level: int, index: int) -> bytes:
        query = (
            select(AuditLeafRow.leaf_hash).where(AuditLeafRow.index == index)
            if level == 0
            else select(AuditNodeRow.hash).where(AuditNodeRow.level == level, AuditNodeRow.index == index)
        )
        return session.execute(query).scalar_one()

    return hash_at


def root_of(session: Session, size: int) -> bytes:
    """Return the root over the first ``size`` entries, from the stored hashes."""
    return root_at(size, hashes_of(session))


def prove_inclusion(session: Session, index: int, size: int) -> tuple[bytes, ...]:
    """Return the proof that entry ``index`` is among the first ``size``.

    Raises:
        ValueError: there is no such entry.
    """
    return inclusion_proof(index, size, hashes_of(session))


def prove_consistency(session: Session, old: int, new: int) -> tuple[bytes, ...]:
    """Return the proof that the log only grew between two sizes.

    Raises:
        ValueError: ``old`` is over ``new``.
    """
    return consistency_proof(old, new, hashes_of(session))


def leaves(session: Session, start: int, end: int) -> Sequence[Leaf]:
    """Return the entries with ``start <= index < end``, in order."""
    texts: dict[int, dict[str, str]] = {}
    for row in session.scalars(_subjects(start, end)):
        texts.setdefault(row.index, {})[row.name] = row.text
    query = select(AuditLeafRow).where(AuditLeafRow.index >= start, AuditLeafRow.index < end)
    return [
        Leaf(row.index, row.at, row.body, row.leaf_hash, texts.get(row.index, {}))
        for row in session.scalars(query.order_by(AuditLeafRow.index))
    ]


def subjects(session: Session, start: int, end: int) -> Sequence[AuditSubjectRow]:
    """Return what has not been erased of these entries' subjects, with the salts."""
    return session.scalars(_subjects(start, end)).all()


def _subjects(start: int, end: int) -> Any:
    return select(AuditSubjectRow).where(AuditSubjectRow.index >= start, AuditSubjectRow.index < end)


def erase(session: Session, index: int) -> int:
    """Erase the subjects' texts and salts of one entry; return how many there were.

    The tree, its root and all proofs stay as they are.
    """
    erased = select(AuditSubjectRow.name).where(AuditSubjectRow.index == index)
    count = len(session.scalars(erased).all())
    session.execute(delete(AuditSubjectRow).where(AuditSubjectRow.index == index))
    return count


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
