"""People by name, as the directory in force has them. Works inside the caller's transaction and never commits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from coordinator.store.paging import Page, Slice, cut
from coordinator.store.people_models import PersonRow
from hansa.contract.directory import Role

_SEPARATOR = " "


@dataclass(frozen=True, slots=True)
class Person:
    """A person of the directory; ``signing_key`` as the directory writes it."""

    name: str
    organisation: str
    roles: tuple[Role, ...]
    signing_key: str


class PersonRepository:
    """Reads people, and replaces all of them by those of another directory."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, name: str) -> Person | None:
        """Return the person of this name, if there is one."""
        row = self._session.get(PersonRow, name)
        return None if row is None else _person(row)

    def replace_all(self, people: Iterable[Person]) -> None:
        """Make ``people`` everybody who is known."""
        self._session.execute(delete(PersonRow))
        self._session.add_all(
            PersonRow(
                name=person.name,
                organisation=person.organisation,
                roles=_SEPARATOR.join(person.roles),
                signing_key=person.signing_key,
            )
            for person in people
        )
        self._session.flush()

    def page(self, page: Page) -> Slice[Person]:
        """Return people in the order of their names."""
        query = select(PersonRow).where(PersonRow.name > page.after).order_by(PersonRow.name).limit(page.limit + 1)
        return cut(self._session.scalars(query).all(), page, lambda row: row.name, _person)


def _person(row: PersonRow) -> Person:
    roles = tuple(Role(role) for role in row.roles.split(_SEPARATOR))
    return Person(row.name, row.organisation, roles, row.signing_key)
