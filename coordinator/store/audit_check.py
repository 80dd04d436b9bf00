"""Recomputes the audit log from its acts and says where it was changed.

Nothing that is stored is believed: a leaf's hash comes from its bytes, a
subtree's from the leaves, the keyed hashes from the words that are still there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.store.audit import VERSIONS, at_text
from coordinator.store.people_models import AuditLeafRow, AuditNodeRow, AuditRow
from hansa.contract.digests import is_keyed_hash
from hansa.contract.merkle import Frontier, leaf_hash

PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class LogState:
    """The log as recomputed. ``first_wrong`` is an act's number; None if the record is whole."""

    size: int
    root: bytes
    first_wrong: int | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    """An act and its leaf, as they are stored: any column may be anything by now."""

    number: int
    at: datetime
    actor: str
    action: str
    subject: str
    salt: bytes | None
    body: bytes
    leaf_hash: bytes
    job: str | None


@dataclass(slots=True)
class _Recount:
    tree: Frontier = field(default_factory=Frontier)

    def page(self, session: Session, last: int) -> int | None:
        """Recount up to act ``last``; return the number of the first that is wrong."""
        first = self.tree.size + 1
        entries = _entries(session, first, last)
        stored = _nodes(session, first - 1, last)
        for number in range(first, last + 1):
            entry = entries.get(number)
            if entry is None or not _is_sound(entry):
                return number
            above = self.tree.append(leaf_hash(entry.body))[1:]
            if any(stored.get((node.level, node.index)) != node.hash for node in above):
                return number
        return None


def verify_log(session: Session) -> LogState:
    """Recompute the tree from the acts and compare all that is stored, page by page.

    A record that was rewritten as a whole, or cut short, is whole in itself:
    compare size and root with what was witnessed or noted earlier.
    """
    recount = _Recount()
    end = max(session.scalar(select(func.max(column))) or 0 for column in (AuditRow.index, AuditLeafRow.index))
    for last in (*range(PAGE, end, PAGE), end):
        wrong = recount.page(session, last)
        if wrong is not None:
            return LogState(recount.tree.size, recount.tree.root(), wrong)
    size = recount.tree.size
    # Over n leaves stand n/2 + n/4 + … complete subtrees, each rounded down.
    wanted = (size, size, size - size.bit_count())
    held = tuple(
        session.scalar(select(func.count()).select_from(table)) for table in (AuditRow, AuditLeafRow, AuditNodeRow)
    )
    return LogState(size, recount.tree.root(), None if held == wanted else size + 1)


def _entries(session: Session, first: int, last: int) -> Mapping[int, _Entry]:
    """Return what can be read: a changed column may be of another type, which no query gets past."""
    try:
        return {entry.number: entry for entry in _read(session, first, last)}
    except Exception:
        if first == last:
            return {}
    middle = (first + last) // 2
    return {**_entries(session, first, middle), **_entries(session, middle + 1, last)}


def _read(session: Session, first: int, last: int) -> list[_Entry]:
    columns: tuple[Any, ...] = (
        AuditRow.index,
        AuditRow.at,
        AuditRow.actor,
        AuditRow.action,
        AuditRow.subject,
        AuditLeafRow.salt,
        AuditLeafRow.body,
        AuditLeafRow.leaf_hash,
        AuditLeafRow.job,
    )
    query = (
        select(*columns)
        .join(AuditLeafRow, AuditLeafRow.index == AuditRow.index)
        .where(AuditRow.index >= first, AuditRow.index <= last)
    )
    return [_Entry(*row) for row in session.execute(query)]


def _nodes(session: Session, start: int, end: int) -> Mapping[tuple[int, int], bytes]:
    """Return the stored subtrees whose last leaf is in [start, end)."""
    kept: dict[tuple[int, int], bytes] = {}
    for level in range(1, end.bit_length()):
        rows = session.execute(
            select(AuditNodeRow.index, AuditNodeRow.hash).where(
                AuditNodeRow.level == level,
                AuditNodeRow.index >= start >> level,
                AuditNodeRow.index < end >> level,
            )
        )
        kept.update({(level, index): found for index, found in rows})
    return kept


def _is_sound(entry: _Entry) -> bool:
    try:
        if leaf_hash(entry.body) != entry.leaf_hash:
            return False
        told = json.loads(entry.body)
        same = (told["at"], told["action"]) == (at_text(entry.at), entry.action) and told["v"] in VERSIONS
        job = told.get("facts", {}).get("job")
        words = {"actor": entry.actor, "subject": entry.subject}
        if not same or entry.job != job:
            return False
        if entry.salt is None:
            # What was erased is blank: without the salt, words would pass unseen.
            return not any(words.values())
        return all(is_keyed_hash(told[name], entry.salt, name, text) for name, text in words.items())
    except Exception:
        # These columns may be anything by now, and so may be what reading them raises.
        return False
