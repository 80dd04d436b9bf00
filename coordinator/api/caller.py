"""Who makes the present call, as the interceptor found out."""

from __future__ import annotations

import enum
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from coordinator.domain.authorisation import Bearer


class Kind(enum.StrEnum):
    """What a caller is; names are unique within a kind."""

    PERSON = "person"
    NODE = "node"
    GUEST = "guest"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller with all roles that it has.

    ``name`` is a person's name, a node's id or a guest's address; ``not_after``
    is the end of a node's certificate.
    """

    kind: Kind
    name: str
    roles: frozenset[Bearer]
    not_after: datetime | None = None

    @property
    def subject(self) -> str:
        """The name with its kind: no two callers have the same."""
        return f"{self.kind}:{self.name}"


_CALLER: Final[ContextVar[Caller]] = ContextVar("caller")


def current_caller() -> Caller:
    """Return who makes the present call.

    Raises:
        LookupError: outside of a call that went through the interceptor.
    """
    return _CALLER.get()


def set_caller(caller: Caller) -> None:
    """Say who makes the present call; each call is a task with a context of its own."""
    _CALLER.set(caller)
