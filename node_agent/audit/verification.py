"""Recomputes the audit log from its entries and says where it was changed.

What is stored is believed nowhere: leaf hashes come from the entries' bytes,
subtrees from the leaves. A log that was rewritten as a whole, or cut short, is
sound in itself; only a size and a root that were noted elsewhere tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hansa.contract.digests import is_keyed_hash
from hansa.contract.merkle import Frontier, Subtree, leaf_hash
from node_agent.audit.log import VERSION, Leaf, at_text, leaves, size_of, subjects
from node_agent.store.models import AuditLeafRow, AuditNodeRow, AuditSubjectRow

PAGE: Final = 1024


@dataclass(frozen=True, slots=True)
class Fault:
    """The first entry that is wrong, and what is wrong with it."""

    index: int
    fault: str


@dataclass(slots=True)
class Recount:
    """A recount of the log, page by page, so that no page holds up the store for long."""

    tree: Frontier = field(default_factory=Frontier)
    # The root when the tree had the size that somebody noted.
    roots: dict[int, str] = field(default_factory=dict)
    fault: Fault | None = None

    def page(self, session: Session, end: int) -> None:
        """Recount up to, not including, ``end``, or to the first fault."""
        start = self.tree.size
        kept = _nodes(session, start, end)
        salted: dict[int, list[AuditSubjectRow]] = {}
        for row in subjects(session, start, end):
            salted.setdefault(row.index, []).append(row)
        found = _leaves(session, start, end)
        for index in range(start, end):
            leaf = found.get(index)
            words = (
                "the entry is missing, or cannot be read" if leaf is None else _leaf_fault(leaf, salted.get(index, []))
            )
            if leaf is not None and not words:
                words = self._grow(leaf, kept)
            if words:
                self.fault = Fault(index, words)
                return

    def _grow(self, leaf: Leaf, kept: Mapping[tuple[int, int], bytes]) -> str:
        done: Sequence[Subtree] = self.tree.append(leaf_hash(leaf.body))
        wrong = [node for node in done[1:] if kept.get((node.level, node.index)) != node.hash]
        return f"the tree's hash at level {wrong[0].level} is wrong" if wrong else ""

    def finish(self, session: Session, size: int) -> None:
        """Look for hashes that no entry accounts for; ``size`` is how far the recount came."""
        held = size_of(session)
        counted = session.scalar(select(func.count()).select_from(AuditLeafRow)) or 0
        above = session.scalar(select(func.count()).select_from(AuditNodeRow)) or 0
        beyond = session.scalar(select(AuditSubjectRow.index).where(AuditSubjectRow.index >= held).limit(1))
        # Over n leaves stand n/2 + n/4 + … complete subtrees, each rounded down.
        if (counted, above) != (held, held - held.bit_count()) or beyond is not None:
            self.fault = Fault(size, "there are hashes or entries that do not belong to the log")


def noted_fault(noted_size: int, noted_root: str, size: int, root: str) -> Fault | None:
    """Return what contradicts a size and a root that were noted earlier.

    Args:
        noted_size: the size, as noted.
        noted_root: the root at that size, as noted, in hexadecimal.
        size: the log's size now.
        root: the recounted root at ``noted_size``; anything if the log is shorter.
    """
    if noted_size > size:
        return Fault(size, f"the log once had {noted_size} entries: the last ones are gone")
    if root != noted_root.lower():
        return Fault(0, f"the first {noted_size} entries are not those of the noted root")
    return None


def _leaf_fault(leaf: Leaf, salted: Sequence[AuditSubjectRow]) -> str:
    try:
        if leaf_hash(leaf.body) != leaf.leaf_hash:
            return "the entry was changed"
        value: dict[str, Any] = json.loads(leaf.body)
        sound = value["v"] == VERSION and value["at"] == at_text(leaf.at)
        hashes = value["subjects"]
        told = all(is_keyed_hash(hashes.get(row.name), row.salt, row.name, row.text) for row in salted)
    except Exception:
        # These bytes may be anything by now, and so may be what reading them raises.
        return "the entry is none"
    if not sound:
        return "the entry is none"
    return "" if told else "a name or a reason was changed"


def _leaves(session: Session, start: int, end: int) -> dict[int, Leaf]:
    """Return the entries that can be read: a changed column may be of another type by now."""
    try:
        return {leaf.index: leaf for leaf in leaves(session, start, end)}
    except Exception:
        if end - start == 1:
            return {}
    middle = (start + end) // 2
    return {**_leaves(session, start, middle), **_leaves(session, middle, end)}


def _nodes(session: Session, start: int, end: int) -> dict[tuple[int, int], bytes]:
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
