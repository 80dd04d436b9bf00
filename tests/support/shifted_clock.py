"""The wall clock, moved by what a test says."""

from __future__ import annotations

from datetime import datetime, timedelta

from hansa.runtime.clock import utc_now


class ShiftedClock:
    """Call it for the time."""

    def __init__(self) -> None:
        self.shift = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self.shift
