"""Page sizes and page tokens as callers write them."""

from __future__ import annotations

import base64
from typing import Final, Protocol

from coordinator.store.paging import Page
from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import DEFAULT_PAGE, MAX_PAGE

_MOST_CHARACTERS: Final = 512


class PagedRequest(Protocol):
    """What every ``List…`` request has."""

    @property
    def page_size(self) -> int:
        """How many at most; a default when zero."""

    @property
    def page_token(self) -> str:
        """Where to go on; from the start when empty."""


def page_of(request: PagedRequest) -> Page:
    """Return the page that ``request`` asks for; sizes above 200 mean 200.

    Raises:
        HansaError: ``MALFORMED``; the token was not made by ``token_of``.
    """
    limit = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
    token = request.page_token
    try:
        if len(token) > _MOST_CHARACTERS:
            raise ValueError("too long")
        after = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
    except ValueError as error:
        raise _refused() from error
    if not after.isprintable():
        raise _refused()
    return Page(limit, after)


def number_page_of(request: PagedRequest) -> Page:
    """Return the page of a list that is ordered by a number.

    Raises:
        HansaError: ``MALFORMED``; the token was not made by ``token_of``.
    """
    page = page_of(request)
    # Up to 18 digits fit a 64-bit column.
    if page.after and not (page.after.isdecimal() and len(page.after) <= 18):  # noqa: PLR2004
        raise _refused()
    return page


def token_of(last: str) -> str:
    """Return the token of the page after the item with key ``last``; empty at the end."""
    return base64.urlsafe_b64encode(last.encode()).decode()


def _refused() -> HansaError:
    return HansaError(Reason.MALFORMED, "This page token was not made here.", field="page_token")
