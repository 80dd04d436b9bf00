"""How often one caller may call one method: a bucket of tokens for each pair."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from hansa.contract.errors import HansaError, Reason

_MOST_BUCKETS: Final = 10_000
_SECONDS: Final = 60.0


class RateLimiter:
    """Buckets that fill evenly; the least recently used are forgotten first."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """Take a clock that never goes back, in seconds."""
        self._monotonic = monotonic
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def check(self, subject: str, method: str, *, per_minute: int) -> None:
        """Take one token.

        Raises:
            HansaError: ``RATE_LIMITED``; the bucket is empty.
        """
        now = self._monotonic()
        left, then = self._buckets.pop((subject, method), (float(per_minute), now))
        left = min(per_minute, left + (now - then) * per_minute / _SECONDS)
        taken = left >= 1
        self._buckets[subject, method] = (left - taken, now)
        if len(self._buckets) > _MOST_BUCKETS:
            self._buckets.popitem(last=False)
        if not taken:
            raise HansaError(Reason.RATE_LIMITED)
