"""The clock that composition roots hand to whatever must know the time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

# Returns aware UTC time.
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the wall clock's time, aware, in UTC."""
    return datetime.now(UTC)
