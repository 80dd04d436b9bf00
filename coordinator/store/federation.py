"""The federation's one row."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.store.people_models import FederationRow


@dataclass(frozen=True, slots=True)
class Federation:
    """What this store belongs to; ``store_uuid`` and ``generation`` name the store."""

    name: str
    store_uuid: str
    generation: int


def create_federation(session: Session, *, name: str, store_uuid: str) -> None:
    """Store the federation, at generation 1."""
    session.add(FederationRow(name=name, store_uuid=store_uuid, generation=1))
    session.flush()


def read_federation(session: Session) -> Federation | None:
    """Return the federation, or None where the store has none yet."""
    row = session.scalar(select(FederationRow))
    return None if row is None else Federation(row.name, row.store_uuid, row.generation)
