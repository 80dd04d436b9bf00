"""The use cases behind ``hansa-node audit``: reading the log, and verifying it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError, Reason
from hansa.contract.notes import parse_note
from hansa.runtime.clock import Clock, utc_now
from node_agent.audit.entries import subjects_erased
from node_agent.audit.log import Leaf, append, erase, leaves, prove_inclusion, root_of, size_of
from node_agent.audit.verification import PAGE, Fault, Recount, noted_fault
from node_agent.audit.witness import LogWitness
from node_agent.store.database import Database

MOST_ENTRIES: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditTrail:
    """One node's log, and what is witnessed of it and by it."""

    database: Database
    clock: Clock = utc_now
    witness: LogWitness | None = None

    async def entries(self, *, after: int | None, limit: int) -> dict[str, Any]:
        """Return entries in order, with the log's size and root.

        Args:
            after: the index before the first entry that is wanted; None for the newest ones.
            limit: at most so many.
        """

        def read(session: Session) -> dict[str, Any]:
            size = size_of(session)
            start = max(size - limit, 0) if after is None else after + 1
            found = leaves(session, start, min(start + limit, size))
            return {
                "size": size,
                "root": root_of(session, size).hex(),
                "entries": [_entry_json(leaf) for leaf in found],
            }

        return await self.database.run(read)

    async def verify(self, *, size: int | None = None, root: str | None = None) -> dict[str, Any]:
        """Recount the whole log; return its size, its root, and the first fault if there is one.

        Args:
            size: a size that was noted earlier, with ``root``.
            root: the root at that size, as hexadecimal.

        Raises:
            HansaError: ``MALFORMED``; one of the two without the other.
        """
        if (size is None) != (root is None):
            raise HansaError(Reason.MALFORMED, "A noted root needs its size, and a size its root.", field="root")
        count, fault = await self._recount(noted=size)
        held = count.tree.size
        if fault is None and size is not None and root is not None:
            fault = noted_fault(size, root, held, count.roots.get(size, ""))
        return {
            "size": held,
            "root": count.tree.root().hex(),
            "fault": None if fault is None else {"index": fault.index, "fault": fault.fault},
        }

    async def prove(self, index: int) -> dict[str, Any]:
        """Return an entry with the proof that it is under our present checkpoint.

        Raises:
            HansaError: ``LOG_ENTRY_UNKNOWN``.
        """
        notes = await self._witness().checkpoint()
        size = parse_note(notes["checkpoint"].encode()).checkpoint.size

        def read(session: Session) -> dict[str, Any]:
            if index >= size:
                raise HansaError(Reason.LOG_ENTRY_UNKNOWN, field="index")
            (leaf,) = leaves(session, index, index + 1)
            hashes = [one.hex() for one in prove_inclusion(session, index, size)]
            return {**_entry_json(leaf), "size": size, "hashes": hashes, **notes}

        return await self.database.run(read)

    async def checkpoint(self) -> dict[str, Any]:
        """Return our newest checkpoint, signed, and the newest that the coordinator has cosigned."""
        return await self._witness().checkpoint()

    async def erase(self, *, index: int | None, person: str, by: str) -> dict[str, Any]:
        """Erase one entry's names and reasons, or those of every entry that names a person.

        Raises:
            HansaError: ``LOG_ENTRY_UNKNOWN``, there is nothing to erase; ``MALFORMED``.
        """
        if (index is None) == (not person):
            raise HansaError(Reason.MALFORMED, "Name either an entry or a person.", field="person")
        now = self.clock()

        def work(session: Session) -> int:
            erased = erase(session, index=index, person=person)
            if not erased:
                raise HansaError(Reason.LOG_ENTRY_UNKNOWN, "There is nothing to erase.")
            append(session, subjects_erased(erased, by), now)
            return len(erased)

        return {"erased": await self.database.run(work)}

    async def accept_coordinator_log(self, *, by: str, reason: str) -> dict[str, Any]:
        """Take over the coordinator's log although it has forked; see ``LogWitness``."""
        return await self._witness().accept_coordinator_log(by=by, reason=reason)

    def _witness(self) -> LogWitness:
        if self.witness is None:
            raise HansaError(Reason.STATE_FOLDER_INVALID, "This agent has no signing key yet.")
        return self.witness

    async def _recount(self, *, noted: int | None) -> tuple[Recount, Fault | None]:
        count = Recount()
        size = await self.database.run(size_of)
        stops = sorted({*range(PAGE, size, PAGE), size, *([noted] if noted is not None and noted <= size else [])})
        for end in stops:
            await self.database.run(lambda session: count.page(session, end))  # noqa: B023
            if count.fault is not None:
                return count, count.fault
            if end == noted:
                count.roots[end] = count.tree.root().hex()
        await self.database.run(lambda session: count.finish(session, size))
        return count, count.fault


def _entry_json(leaf: Leaf) -> dict[str, Any]:
    return {
        "index": leaf.index,
        "body": leaf.body.decode(errors="backslashreplace"),
        "leaf_hash": leaf.leaf_hash.hex(),
        **_shown(leaf),
    }


def _shown(leaf: Leaf) -> dict[str, Any]:
    """Return the parts of an entry for people; a damaged one has none."""
    try:
        value = json.loads(leaf.body)
        subjects = {name: leaf.subjects.get(name) for name in value["subjects"]}
        return {"at": value["at"], "action": value["action"], "facts": value["facts"], "subjects": subjects}
    except (ValueError, LookupError, TypeError):
        return {"at": None, "action": None, "facts": {}, "subjects": {}}
