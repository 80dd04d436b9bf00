"""Whether the node's clock and the coordinator's agree: a node that cannot tell the time takes no new work.

Deadlines, approvals and the freshness of the trust repository are judged by
the wall clock. Which of two clocks is wrong, neither side can know; so both
look, and say what they see. Leases do not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog

from hansa.contract.limits import CLOCK_TOLERANCE, CLOCK_WORTH_A_WORD

_log = structlog.get_logger(__name__)
_NO_DIFFERENCE: Final = timedelta()


def difference(now: datetime, wall: datetime, delay: timedelta) -> timedelta:
    """Return by how much our clock is ahead of the one that showed ``wall``.

    What may be due to the way of the message is not counted: after a pause of
    this process, an old message would else look like a wrong clock.

    Args:
        now: our time at the receipt.
        wall: the other's time when it wrote.
        delay: the longest that the message can have been on its way.
    """
    ahead = now - wall
    return ahead if ahead < _NO_DIFFERENCE else max(ahead - delay, _NO_DIFFERENCE)


@dataclass(slots=True)
class ClockWatch:
    """What was last seen; zero before anything was, and kept while there is no session."""

    ahead: timedelta = _NO_DIFFERENCE

    def compare(self, now: datetime, wall: datetime, delay: timedelta) -> None:
        """Take note of the coordinator's time; see ``difference``."""
        before, self.ahead = self.ahead, difference(now, wall, delay)
        if _level(before) == _level(self.ahead):
            return
        tell = _log.error if self.is_wrong() else _log.warning if _level(self.ahead) else _log.info
        tell("clock_compared", ahead_seconds=self.ahead_seconds)

    @property
    def ahead_seconds(self) -> int:
        """By how many seconds our clock is ahead of the coordinator's."""
        return round(self.ahead.total_seconds())

    def is_wrong(self) -> bool:
        """Say whether the clocks are too far apart to take new work."""
        return abs(self.ahead) > CLOCK_TOLERANCE


def _level(ahead: timedelta) -> int:
    return (abs(ahead) > CLOCK_WORTH_A_WORD) + (abs(ahead) > CLOCK_TOLERANCE)
