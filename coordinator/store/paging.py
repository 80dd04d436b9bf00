"""Pages of a list that is ordered by a key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page:
    """What is asked for: up to ``limit`` items after the one with key ``after``.

    An empty ``after`` means from the start.
    """

    limit: int
    after: str = ""


@dataclass(frozen=True, slots=True)
class Slice(Generic[T]):
    """What is answered. ``last`` is the key to go on after, empty at the end."""

    items: tuple[T, ...]
    last: str = ""


def cut(rows: Sequence[R], page: Page, key: Callable[[R], str], make: Callable[[R], T]) -> Slice[T]:
    """Return a slice of ``rows``, of which one more than the limit was read."""
    shown = rows[: page.limit]
    more = len(rows) > page.limit
    return Slice(tuple(make(row) for row in shown), key(shown[-1]) if more else "")
