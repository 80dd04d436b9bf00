"""Verifies the coordinator's audit log from outside: nothing it says is believed.

The leaves come page by page and only the tree's edge is kept, so that a log of
any length is verified in little memory.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC
from typing import Any, Final, Protocol

from hansa.contract.digests import is_keyed_hash
from hansa.contract.directory import Directory
from hansa.contract.errors import HansaError, Reason
from hansa.contract.merkle import Frontier, leaf_hash, verify_consistency, verify_inclusion
from hansa.contract.notes import (
    MOST_HASHES,
    Note,
    coordinator_origin,
    cosigned_at,
    node_origin,
    open_checkpoint,
    parse_note,
)
from hansa.contract.raw_keys import signing_key
from hansa.contract.witnessing import needed_of
from hansa.sdk.audit import Leaf

_VERSIONS: Final = (1, 2)


class LogSource(Protocol):
    """Where leaves and proofs come from; ``AuditClient`` is one."""

    async def leaves(self, start: int) -> Sequence[Leaf]:
        """Return the next leaves from ``start`` on; empty at the end."""

    async def checkpoint(self) -> bytes:
        """Return a signed note."""

    async def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """Return a proof."""

    async def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """Return a proof."""


@dataclass(frozen=True, slots=True)
class LogTrust:
    """Whose signatures count: keys as the directory has them.

    ``witnesses`` is None where only the log's key is known.
    """

    federation: str
    log_key: str
    witnesses: Mapping[str, str] | None = None

    @classmethod
    def of(cls, directory: Directory) -> LogTrust:
        """Return what a verified directory says."""
        keys = {node.node: node.signing_key for node in directory.nodes if node.node in directory.witnesses}
        return cls(directory.federation, directory.coordinator_log_key, keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogVerdict:
    """What the verification found.

    Attributes:
        note: the verified checkpoint, to be remembered for the next time.
        size, root: of that checkpoint.
        cosigned: the witnesses whose cosignatures are good.
        needed: how many of them there should be; None where the witnesses are not known.
        since: the size that was remembered from last time; None at the first time.
        erased: how many entries have no words any more.
        first_wrong: the number of the first entry that is wrong.
        fault: what is wrong; empty where all is well.
    """

    note: bytes
    size: int
    root: str
    cosigned: tuple[str, ...] = ()
    needed: int | None = None
    since: int | None = None
    erased: int = 0
    first_wrong: int | None = None
    fault: str = ""


@dataclass(slots=True)
class _Recount:
    tree: Frontier = field(default_factory=Frontier)
    # The tree's edge before each page: where to begin when the root is not the signed one.
    before: list[Frontier] = field(default_factory=list)
    erased: int = 0
    first_wrong: int | None = None


async def verify_log(source: LogSource, trust: LogTrust, remembered: bytes | None) -> LogVerdict:
    """Verify the whole log up to its published checkpoint.

    Args:
        source: the coordinator.
        trust: whose signatures count.
        remembered: the note that an earlier verification returned.

    Raises:
        HansaError: ``NOTE_INVALID``; the checkpoint is not signed by the log's key.
    """
    note = open_log_checkpoint(await source.checkpoint(), trust)
    at = note.checkpoint
    verdict = LogVerdict(
        note=note.to_bytes(),
        size=at.size,
        root=at.root.hex(),
        cosigned=cosigners(note, trust),
        needed=None if trust.witnesses is None else needed_of(len(trust.witnesses)),
        since=None if remembered is None else parse_note(remembered).checkpoint.size,
    )
    if remembered is not None and not await _continues(source, parse_note(remembered), note):
        return replace(verdict, fault="the log does not continue what was verified last time: it was rewritten or cut")
    recount = await _recount(source, at.size)
    if recount.first_wrong is not None:
        return replace(
            verdict, first_wrong=recount.first_wrong, fault="the entry is missing, or its words are not its own"
        )
    if recount.tree.root() != at.root:
        wrong = await _first_wrong(source, note, recount)
        return replace(verdict, first_wrong=wrong, fault="the entry is not the one that was signed")
    return replace(verdict, erased=recount.erased)


def open_log_checkpoint(data: bytes, trust: LogTrust) -> Note:
    """Return the coordinator's checkpoint in ``data``.

    Raises:
        HansaError: ``NOTE_INVALID``; the log's key has not signed it.
    """
    return open_checkpoint(data, origin=coordinator_origin(trust.federation), key=signing_key(trust.log_key))


def cosigners(note: Note, trust: LogTrust) -> tuple[str, ...]:
    """Return the witnesses that have cosigned ``note``, each verified."""
    found = []
    for node, text in sorted((trust.witnesses or {}).items()):
        name, key = node_origin(trust.federation, node), signing_key(text)
        if any(cosigned_at(note.checkpoint, line, name=name, key=key) is not None for line in note.lines):
            found.append(node)
    return tuple(found)


async def prove(source: LogSource, trust: LogTrust, number: int) -> dict[str, Any]:
    """Return the entry ``number`` (from 1) with its verified proof, as JSON.

    Raises:
        HansaError: ``LOG_ENTRY_UNKNOWN``, the published checkpoint does not
            cover it; ``LOG_FORKED``, what came does not prove it.
    """
    note, index = open_log_checkpoint(await source.checkpoint(), trust), number - 1
    if index >= note.checkpoint.size:
        raise HansaError(Reason.LOG_ENTRY_UNKNOWN, "The published checkpoint does not cover that entry (yet).")
    leaf = next(iter(await source.leaves(index)), None)
    proof = await source.inclusion(index, note.checkpoint.size)
    at = note.checkpoint
    if leaf is None or not verify_inclusion(leaf_hash(leaf.body), index, at.size, proof, at.root):
        raise HansaError(Reason.LOG_FORKED, f"The coordinator cannot prove entry {number}.")
    return {
        "number": number,
        "index": index,
        "size": at.size,
        "body": leaf.body.decode(),
        "leaf_hash": leaf_hash(leaf.body).hex(),
        "hashes": [one.hex() for one in proof],
        "checkpoint": note.to_bytes().decode(),
    }


async def read_leaves(source: LogSource, size: int, take: Callable[[Sequence[Leaf]], Awaitable[None] | None]) -> None:
    """Hand the first ``size`` leaves to ``take``, page by page.

    Raises:
        HansaError: ``LOG_FORKED``; one is missing.
    """
    start = 0
    while start < size:
        page = (await source.leaves(start))[: size - start]
        if not page or [leaf.index for leaf in page] != list(range(start, start + len(page))):
            raise HansaError(Reason.LOG_FORKED, f"Entry {start + 1} is missing.")
        waiting = take(page)
        if waiting is not None:
            await waiting
        start += len(page)


async def _recount(source: LogSource, size: int) -> _Recount:
    found = _Recount()

    def take(page: Sequence[Leaf]) -> None:
        found.before.append(Frontier(found.tree.size, list(found.tree.peaks)))
        for leaf in page:
            if found.first_wrong is None and not _is_sound(leaf):
                found.first_wrong = leaf.index + 1
            found.tree.append(leaf_hash(leaf.body))
            found.erased += not leaf.salt

    try:
        await read_leaves(source, size, take)
    except HansaError as error:
        if error.reason is not Reason.LOG_FORKED:
            raise
        found.first_wrong = found.first_wrong or found.tree.size + 1
    return found


def _is_sound(leaf: Leaf) -> bool:
    """Say whether the words that the coordinator tells are those that were hashed."""
    try:
        told = json.loads(leaf.body)
        at = leaf.at.replace(tzinfo=UTC).isoformat(timespec="microseconds")
        same = (told["v"] in _VERSIONS, told["at"], told["action"]) == (True, at, leaf.action)
        words = {"actor": leaf.actor, "subject": leaf.subject}
        if not same or leaf.number != leaf.index + 1:
            return False
        if not leaf.salt:
            return not any(words.values())
        return all(is_keyed_hash(told[name], leaf.salt, name, text) for name, text in words.items())
    except Exception:
        # The bytes are the coordinator's: whatever reading them raises, they are no entry.
        return False


async def _continues(source: LogSource, old: Note, new: Note) -> bool:
    return await _is_prefix(source, Frontier(old.checkpoint.size), new, root=old.checkpoint.root)


async def _is_prefix(source: LogSource, tree: Frontier, note: Note, *, root: bytes | None = None) -> bool:
    """Say whether the first ``tree.size`` leaves of the signed tree have this root."""
    at, held = note.checkpoint, tree.root() if root is None else root
    if tree.size > at.size:
        return False
    proof = () if tree.size in (0, at.size) else await source.consistency(tree.size, at.size)
    whole = len(proof) <= MOST_HASHES
    return whole and verify_consistency(tree.size, at.size, proof, old_root=held, new_root=at.root)


async def _first_wrong(source: LogSource, note: Note, recount: _Recount) -> int:
    """Return the number of the first entry that the signed tree does not have at its place."""
    good = await _last_good([tree for tree in recount.before if tree.size], source, note) or Frontier()
    grown = []
    for leaf in await source.leaves(good.size):
        if leaf.index >= note.checkpoint.size:
            break
        good.append(leaf_hash(leaf.body))
        grown.append(Frontier(good.size, list(good.peaks)))
    last = await _last_good(grown, source, note)
    return (grown[0].size if last is None else last.size + 1) if grown else good.size + 1


async def _last_good(trees: Sequence[Frontier], source: LogSource, note: Note) -> Frontier | None:
    """Return the largest of ``trees``, which grow, that is a beginning of the signed one."""
    low, high = 0, len(trees)
    while low < high:
        middle = (low + high) // 2
        if await _is_prefix(source, trees[middle], note):
            low = middle + 1
        else:
            high = middle
    return Frontier(trees[low - 1].size, list(trees[low - 1].peaks)) if low else None
