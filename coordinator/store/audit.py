"""The record of what people did. Works inside the caller's transaction and never commits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.store.paging import Page, Slice, cut
from coordinator.store.people_models import AuditRow


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
        self._session.add(AuditRow(index=last + 1, at=at, actor=actor, action=action, subject=subject))
        self._session.flush()

    def page(self, page: Page) -> Slice[AuditEntry]:
        """Return entries, newest first; ``page.after`` is an index."""
        query = select(AuditRow).order_by(AuditRow.index.desc()).limit(page.limit + 1)
        if page.after:
            query = query.where(AuditRow.index < int(page.after))
        return cut(self._session.scalars(query).all(), page, lambda row: str(row.index), _entry)


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(row.index, row.at, row.actor, row.action, row.subject)
