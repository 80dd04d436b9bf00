"""Coming again when the coordinator asks for it: later, not for ever, and not all at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from hansa.runtime.backoff import delays
from hansa.sdk.errors import RemoteError

PATIENCE_SECONDS: Final = 90.0

# Told what was refused, and how many seconds the caller waits now.
OnWait = Callable[[RemoteError, float], None]


def no_word(_refusal: RemoteError, _seconds: float) -> None:
    """Tell nobody."""


class Patience:
    """The waiting of one call: each pause at least what the coordinator asked for, all together bounded.

    The hint is the coordinator's and not trusted: one that is too long ends
    the waiting, and one that is too short is stretched with each repeat.
    """

    def __init__(self, monotonic: Callable[[], float], draw: Callable[[], float], on_wait: OnWait = no_word) -> None:
        """Take a clock that never goes back, uniform numbers in [0, 1), and who is told of each pause."""
        self._monotonic = monotonic
        self._draw = draw
        self._on_wait = on_wait
        self.renew()

    def renew(self) -> None:
        """Begin anew: the coordinator has answered well."""
        self._until = self._monotonic() + PATIENCE_SECONDS
        self._steps = delays(self._draw)

    def pause(self, refusal: RemoteError) -> float | None:
        """Return the seconds to wait before the next try; None if waiting is of no use, or would take too long."""
        if refusal.retry_seconds <= 0:
            return None
        # Up to half as long again, so that those who were refused together do not come back together.
        asked = refusal.retry_seconds * (1 + self._draw() / 2)
        seconds = max(asked, next(self._steps))
        return seconds if self._monotonic() + seconds <= self._until else None

    async def wait(self, refusal: RemoteError) -> None:
        """Sleep until the next try is due.

        Raises:
            RemoteError: ``refusal`` itself; there is no next try.
        """
        seconds = self.pause(refusal)
        if seconds is None:
            raise refusal
        self._on_wait(refusal, seconds)
        await asyncio.sleep(seconds)
