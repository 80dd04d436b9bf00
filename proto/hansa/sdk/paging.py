"""Reads a list to its end, page by page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from hansa.contract.errors import Reason
from hansa.sdk.errors import RemoteError

Item = TypeVar("Item")

# A coordinator that never ends a list must not keep a person waiting for ever.
_MOST_PAGES: Final = 1000


async def read_pages(
    fetch: Callable[[str], Awaitable[tuple[Sequence[Item], str]]], *, limit: int | None = None
) -> list[Item]:
    """Return the items of all pages, or the first ``limit`` of them.

    Args:
        fetch: returns the page at a token ("" is the first) and the token of
            the next page, "" at the end.
        limit: how many to read at most.

    Raises:
        RemoteError: ``MALFORMED``; the list does not end.
    """
    items: list[Item] = []
    token = ""
    for _ in range(_MOST_PAGES):
        page, token = await fetch(token)
        items += page
        if not token or (limit is not None and len(items) >= limit):
            return items[:limit]
    raise RemoteError(Reason.MALFORMED, "The coordinator's list does not end.")
