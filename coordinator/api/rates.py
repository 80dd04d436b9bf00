"""How often one caller may call one method, and how often at the same time."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
            HansaError: ``RATE_LIMITED``, with the time when there is a token
                again; the bucket is empty.
        """
        missing = self.take(subject, method, per_minute=per_minute)
        if missing > 0:
            raise HansaError(Reason.RATE_LIMITED, retry_seconds=missing)

    def take(self, subject: str, method: str, *, per_minute: int) -> float:
        """Take one token and return 0, or return the seconds until there is one."""
        now = self._monotonic()
        left, then = self._buckets.pop((subject, method), (float(per_minute), now))
        left = min(per_minute, left + (now - then) * per_minute / _SECONDS)
        taken = left >= 1
        self._buckets[subject, method] = (left - taken, now)
        if len(self._buckets) > _MOST_BUCKETS:
            self._buckets.popitem(last=False)
        return 0.0 if taken else (1 - left) * _SECONDS / per_minute


class Memory:
    """Bytes that uploads under way may take in all."""

    def __init__(self, most: int) -> None:
        """Take how many there are."""
        self._free = most

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Hold ``size`` bytes while the body runs.

        Raises:
            HansaError: ``OVERLOADED``; so many are not free.
        """
        if size > self._free:
            raise HansaError(Reason.OVERLOADED, log="memory of uploads")
        self._free -= size
        try:
            yield
        finally:
            self._free += size


class Slots:
    """Calls that are under way, by place: of a whole listener, of an address, of a caller, of their method."""

    def __init__(self) -> None:
        """Begin with none."""
        self._taken: Counter[tuple[str, ...]] = Counter()

    @contextmanager
    def taking(self, *place: str, most: int, reason: Reason = Reason.RATE_LIMITED) -> Iterator[None]:
        """Hold one slot of ``most`` at ``place`` while the body runs.

        Raises:
            HansaError: ``reason``; all are taken.
        """
        if self._taken[place] >= most:
            raise HansaError(reason, "Too many calls at the same time; try again later.")
        self._taken[place] += 1
        try:
            yield
        finally:
            self._taken[place] -= 1
            if not self._taken[place]:
                del self._taken[place]
