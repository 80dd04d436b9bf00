"""The record of what people did. Works inside the caller's transaction and never commits.

Beside each act stands a leaf of a Merkle tree (RFC 9162), so that a change of
the record shows: see ``verify_log``.
"""

from __future__ import annotations

import hmac
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.store.paging import Page, Slice, cut
from coordinator.store.people_models import AuditLeafRow, AuditNodeRow, AuditRow
from hansa.contract.digests import canonical, keyed_hash
from hansa.contract.merkle import Frontier, leaf_hash

_SALT_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One act. ``index`` is dense and starts at 1."""

    index: int
    at: datetime
    actor: str
    action: str
    subject: str


class AuditRepository:
    """Appends, and reads from the newest."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def append(self, *, at: datetime, actor: str, action: str, subject: str) -> None:
        """Record one act, in the transaction that performs it."""
        last = self._session.scalar(select(func.max(AuditRow.index))) or 0
        row = AuditRow(index=last + 1, at=at, actor=actor, action=action, subject=subject)
        self._session.add(row)
        # Before the leaf: this table's newest row was read, so that PostgreSQL answers an act that
        # came at the same time with a failure that is tried again, not with a duplicate key.
        self._session.flush()
        grow(self._session, row, secrets.token_bytes(_SALT_BYTES))

    def page(self, page: Page) -> Slice[AuditEntry]:
        """Return entries, newest first; ``page.after`` is an index."""
        query = select(AuditRow).order_by(AuditRow.index.desc()).limit(page.limit + 1)
        if page.after:
            query = query.where(AuditRow.index < int(page.after))
        return cut(self._session.scalars(query).all(), page, lambda row: str(row.index), _entry)


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(row.index, row.at, row.actor, row.action, row.subject)


def grow(session: Session, row: AuditRow, salt: bytes) -> None:
    """Add the leaf of ``row``, the newest act, and the subtrees that it completes."""
    body = canonical(
        {
            "v": 1,
            "at": _at(row),
            "action": row.action,
            "actor": keyed_hash(salt, "actor", row.actor),
            "subject": keyed_hash(salt, "subject", row.subject),
        }
    )
    leaf, *above = Frontier.load(row.index - 1, lambda level, index: _hash_at(session, level, index)).append(
        leaf_hash(body)
    )
    session.add(AuditLeafRow(index=row.index, salt=salt, body=body, leaf_hash=leaf.hash))
    session.add_all(AuditNodeRow(level=node.level, index=node.index, hash=node.hash) for node in above)
    session.flush()


def _at(row: AuditRow) -> str:
    return row.at.astimezone(UTC).isoformat(timespec="microseconds")


def _hash_at(session: Session, level: int, index: int) -> bytes:
    if level == 0:
        return session.get_one(AuditLeafRow, index + 1).leaf_hash
    return session.get_one(AuditNodeRow, (level, index)).hash


@dataclass(frozen=True, slots=True)
class LogState:
    """The log as recomputed. ``first_wrong`` is an index; None if the record is whole."""

    size: int
    root: bytes
    first_wrong: int | None = None


def verify_log(session: Session) -> LogState:
    """Recompute the tree from the acts and compare all that is stored.

    A record that was rewritten as a whole, or cut short, is whole in itself:
    compare size and root with what was noted earlier.
    """
    tree, nodes = Frontier(), 0
    leaves = {row.index: row for row in session.scalars(select(AuditLeafRow))}
    stored = {(row.level, row.index): row.hash for row in session.scalars(select(AuditNodeRow))}
    acts = session.scalars(select(AuditRow).order_by(AuditRow.index)).all()
    for number, act in enumerate(acts, start=1):
        leaf = leaves.get(number)
        if act.index != number or leaf is None or not _matches(act, leaf):
            return LogState(tree.size, tree.root(), number)
        above = tree.append(leaf_hash(leaf.body))[1:]
        nodes += len(above)
        if any(stored.get((node.level, node.index)) != node.hash for node in above):
            return LogState(tree.size, tree.root(), number)
    left_over = len(leaves) > len(acts) or len(stored) > nodes
    return LogState(tree.size, tree.root(), len(acts) + 1 if left_over else None)


def _matches(act: AuditRow, leaf: AuditLeafRow) -> bool:
    if leaf_hash(leaf.body) != leaf.leaf_hash:
        return False
    try:
        told = json.loads(leaf.body)
        hashes = {name: str(told[name]) for name in ("actor", "subject")}
        same = (told["at"], told["action"]) == (_at(act), act.action)
    except (ValueError, LookupError, TypeError):
        return False
    return same and (
        leaf.salt is None
        or all(
            hmac.compare_digest(hashes[name].encode(), keyed_hash(leaf.salt, name, text).encode())
            for name, text in (("actor", act.actor), ("subject", act.subject))
        )
    )
