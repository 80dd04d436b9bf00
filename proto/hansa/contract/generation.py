"""Which generation a store has after it was restored.

A store's uuid and generation are what its peers know it by. A restored store
has forgotten what came after its backup, and says so by a higher generation.
"""

from __future__ import annotations

from datetime import datetime


def raised(known: int, *, above: int = 0, now: datetime) -> int:
    """Return the generation of a store that is restored ``now``.

    It is the time in seconds, unless a larger one is known already: so two
    restores of one backup have different generations, and the later one the
    higher, although neither knows of the other.

    Args:
        known: the highest generation in the backup, and in the store that it replaces.
        above: what the peers are known to have seen; for a clock that is behind.
        now: aware UTC time.
    """
    return max(known + 1, above + 1, int(now.timestamp()))
