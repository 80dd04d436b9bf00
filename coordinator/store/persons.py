"""People by name. Works inside the caller's transaction and never commits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.store.paging import Page, Slice, cut
from coordinator.store.people_models import PersonRow


@dataclass(frozen=True, slots=True)
class Person:
    """A registered person; ``role`` is ``researcher`` or ``operator``."""

    name: str
    role: str
    public_key_pem: str
    fingerprint: str


class PersonRepository:
    """Reads and writes people."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, name: str) -> Person | None:
        """Return the person of this name, if there is one."""
        row = self._session.get(PersonRow, name)
        return None if row is None else _person(row)

    def add(self, person: Person, now: datetime) -> None:
        """Store a person whose name is free."""
        self._session.add(
            PersonRow(
                name=person.name,
                role=person.role,
                public_key_pem=person.public_key_pem,
                fingerprint=person.fingerprint,
                added_at=now,
            )
        )
        self._session.flush()

    def page(self, page: Page) -> Slice[Person]:
        """Return people in the order of their names."""
        query = select(PersonRow).where(PersonRow.name > page.after).order_by(PersonRow.name).limit(page.limit + 1)
        return cut(self._session.scalars(query).all(), page, lambda row: row.name, _person)


def _person(row: PersonRow) -> Person:
    return Person(row.name, row.role, row.public_key_pem, row.fingerprint)
