"""The record of what people did. Works inside the caller's transaction and never commits.

Beside each act stands a leaf of a Merkle tree (RFC 9162), so that a change of
the record shows: see ``coordinator.store.audit_check``. Acts are numbered from
1, leaves from 0: act ``n`` is leaf ``n - 1``.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from sqlalchemy import ColumnElement, bindparam, func, or_, select, tuple_, update
from sqlalchemy.orm import Session

from coordinator.store.paging import Page, Slice, cut
from coordinator.store.people_models import AuditLeafRow, AuditNodeRow, AuditRow
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

T = TypeVar("T")

VERSIONS: Final = (1, 2)
_SALT_BYTES: Final = 32
# Made once: a proof is asked for more often than SQLAlchemy can compose its statement.
_LEAF_HASHES: Final = select(AuditLeafRow.index, AuditLeafRow.leaf_hash).where(
    AuditLeafRow.index.in_(bindparam("numbers", expanding=True))
)
_NODE_HASHES: Final = select(AuditNodeRow.level, AuditNodeRow.index, AuditNodeRow.hash).where(
    tuple_(AuditNodeRow.level, AuditNodeRow.index).in_(bindparam("places", expanding=True))
)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One act. ``index`` is dense and starts at 1; actor and subject are empty once erased."""

    index: int
    at: datetime
    actor: str
    action: str
    subject: str


@dataclass(frozen=True, slots=True)
class AuditLeaf:
    """A leaf and its act. ``index`` starts at 0; ``salt`` is None once the act was erased."""

    index: int
    body: bytes
    salt: bytes | None
    entry: AuditEntry


class AuditRepository:
    """Appends, and reads."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def append(
        self, *, at: datetime, actor: str, action: str, subject: str, facts: Mapping[str, str | int] | None = None
    ) -> int:
        """Record one act, in the transaction that performs it; return its leaf's index.

        Args:
            at: aware time.
            actor: who acted; in the tree as a keyed hash, and erasable.
            action: what was done.
            subject: to whom or what, in words; erasable like ``actor``.
            facts: ids, digests and numbers that stay in the tree for good; a
                fact named ``job`` makes the entry part of that job's evidence.
        """
        last = self._session.scalar(select(func.max(AuditRow.index))) or 0
        row = AuditRow(index=last + 1, at=at, actor=actor, action=action, subject=subject)
        self._session.add(row)
        # Before the leaf: this table's newest row was read, so that PostgreSQL answers an act that
        # came at the same time with a failure that is tried again, not with a duplicate key.
        self._session.flush()
        _grow(self._session, row, facts or {}, secrets.token_bytes(_SALT_BYTES))
        return last

    def page(self, page: Page) -> Slice[AuditEntry]:
        """Return entries, newest first; ``page.after`` is an index."""
        query = select(AuditRow).order_by(AuditRow.index.desc()).limit(page.limit + 1)
        if page.after:
            query = query.where(AuditRow.index < int(page.after))
        return cut(self._session.scalars(query).all(), page, lambda row: str(row.index), _entry)

    def size(self) -> int:
        """Return how many leaves there are."""
        return self._session.scalar(select(func.max(AuditLeafRow.index))) or 0

    def leaves(self, start: int, limit: int) -> Sequence[AuditLeaf]:
        """Return at most ``limit`` leaves from ``start``, oldest first."""
        query = (
            select(AuditLeafRow, AuditRow)
            .join(AuditRow, AuditRow.index == AuditLeafRow.index)
            .where(AuditLeafRow.index > start)
            .order_by(AuditLeafRow.index)
            .limit(limit)
        )
        return [_leaf(leaf, act) for leaf, act in self._session.execute(query)]

    def leaves_of(self, job: str) -> Sequence[AuditLeaf]:
        """Return the leaves whose facts name ``job``, oldest first."""
        query = (
            select(AuditLeafRow, AuditRow)
            .join(AuditRow, AuditRow.index == AuditLeafRow.index)
            .where(AuditLeafRow.job == job)
            .order_by(AuditLeafRow.index)
        )
        return [_leaf(leaf, act) for leaf, act in self._session.execute(query)]

    def leaf_hash(self, index: int) -> bytes | None:
        """Return the stored hash of leaf ``index``; None if there is none."""
        return self._session.scalar(select(AuditLeafRow.leaf_hash).where(AuditLeafRow.index == index + 1))

    def root(self, size: int) -> bytes:
        """Return the root over the first ``size`` leaves, from the stored hashes."""
        return _read(self._session, lambda hash_at: root_at(size, hash_at))

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """Return the proof that leaf ``index`` is among the first ``size``.

        Raises:
            ValueError: there is no such leaf.
            KeyError: a hash is missing; the log is damaged, or not so large.
        """
        return _read(self._session, lambda hash_at: inclusion_proof(index, size, hash_at))

    def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """Return the proof that the log only grew between two sizes.

        Raises:
            ValueError: ``old`` is over ``new``.
            KeyError: a hash is missing; the log is damaged, or not so large.
        """
        return _read(self._session, lambda hash_at: consistency_proof(old, new, hash_at))

    def erase(self, *, index: int | None = None, person: str = "") -> Sequence[int]:
        """Erase the words and the salt of entries; return their numbers, as in the list.

        The tree stays as it is; without the salt nobody finds the words from
        their hashes. Entries that were erased before are not counted.

        Args:
            index: of one entry, as the list numbers them (from 1).
            person: whose entries: those by them, and those that name them.
        """
        which = AuditRow.index == index if index is not None else _names(person)
        query = (
            select(AuditRow.index, AuditRow.actor, AuditRow.subject)
            .join(AuditLeafRow, AuditLeafRow.index == AuditRow.index)
            .where(which, AuditLeafRow.salt.is_not(None))
            .order_by(AuditRow.index)
        )
        word = re.compile(rf"(?<![a-z0-9._-]){re.escape(person)}(?![a-z0-9_-]|\.[a-z0-9])")
        found = [
            number
            for number, actor, subject in self._session.execute(query).all()
            if index is not None or actor == person or word.search(subject)
        ]
        for number in found:
            self._session.execute(update(AuditRow).where(AuditRow.index == number).values(actor="", subject=""))
            self._session.execute(update(AuditLeafRow).where(AuditLeafRow.index == number).values(salt=None))
        return found


def _names(person: str) -> ColumnElement[bool]:
    # A first sieve, in any database's LIKE; the words are looked at afterwards.
    return or_(AuditRow.actor == person, AuditRow.subject.contains(person, autoescape=True))


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(row.index, row.at, row.actor, row.action, row.subject)


def _leaf(leaf: AuditLeafRow, act: AuditRow) -> AuditLeaf:
    return AuditLeaf(leaf.index - 1, leaf.body, leaf.salt, _entry(act))


def _grow(session: Session, row: AuditRow, facts: Mapping[str, str | int], salt: bytes) -> None:
    """Add the leaf of ``row``, the newest act, and the subtrees that it completes."""
    body = canonical(
        {
            "v": VERSIONS[-1],
            "at": at_text(row.at),
            "action": row.action,
            "facts": dict(facts),
            "actor": keyed_hash(salt, "actor", row.actor),
            "subject": keyed_hash(salt, "subject", row.subject),
        }
    )
    size = row.index - 1
    leaf, *above = _read(session, lambda hash_at: Frontier.load(size, hash_at)).append(leaf_hash(body))
    job = facts.get("job")
    session.add(
        AuditLeafRow(
            index=row.index, salt=salt, body=body, leaf_hash=leaf.hash, job=job if isinstance(job, str) else None
        )
    )
    session.add_all(AuditNodeRow(level=node.level, index=node.index, hash=node.hash) for node in above)
    session.flush()


def at_text(at: datetime) -> str:
    """Return an aware time as the leaves have it."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _read(session: Session, compute: Callable[[HashAt], T]) -> T:
    """Return what ``compute`` makes of the stored hashes.

    Raises:
        KeyError: a hash is missing.
    """
    held = dict(_stored(session, hashes_for(compute)))
    return compute(lambda level, index: held[level, index])


def _stored(session: Session, wanted: set[tuple[int, int]]) -> Iterable[tuple[tuple[int, int], bytes]]:
    bottom = [index + 1 for level, index in wanted if level == 0]
    if bottom:
        for index, found in session.execute(_LEAF_HASHES, {"numbers": bottom}):
            yield (0, index - 1), found
    above = [place for place in wanted if place[0]]
    if above:
        for level, index, found in session.execute(_NODE_HASHES, {"places": above}):
            yield (level, index), found
