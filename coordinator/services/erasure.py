"""Erasing what the audit log says of people, which the log itself survives."""

from __future__ import annotations

from sqlalchemy.orm import Session

from coordinator.services.nodes import Act
from coordinator.store.audit import AuditRepository
from hansa.contract.errors import HansaError, Reason


def erase_words(session: Session, *, index: int | None, person: str, act: Act) -> int:
    """Erase one entry's words, or those of every entry that names ``person``; return how many entries.

    The entry that records it says how much was erased, and not whose.

    Raises:
        HansaError: ``LOG_ENTRY_UNKNOWN``; there is nothing to erase.
    """
    audit = AuditRepository(session)
    erased = audit.erase(index=index, person=person)
    if not erased:
        raise HansaError(Reason.LOG_ENTRY_UNKNOWN, "There is nothing to erase.")
    audit.append(
        at=act.now,
        actor=act.actor,
        action="words_erased",
        subject=f"{len(erased)} entries",
        facts={"entries": len(erased), "first": erased[0], "last": erased[-1]},
    )
    return len(erased)
