"""Which generation a store has after it was restored.

A store's uuid and generation are what its peers know it by. A restored store
has forgotten what came after its backup, and says so by a higher generation.
"""

from __future__ import annotations

from typing import Final

# Peers take a leap of a thousand for a forgery; many restores that they never see must stay below it.
MOST_DRAWN: Final = 16


def raised(*known: int, draw: int) -> int:
    """Return the generation of a store that is restored: above all that are known.

    Args:
        known: those of the backup, of the store that it replaces, of earlier
            restores of the same backup, and what the operator knows of.
        draw: a random number below ``MOST_DRAWN``, so that two restores of one
            backup, of which neither knows, are hardly ever taken for one.

    Raises:
        ValueError: ``draw`` is out of its range.
    """
    if not 0 <= draw < MOST_DRAWN:
        raise ValueError(f"draw must be 0 to {MOST_DRAWN - 1}, got {draw}")
    return max(known) + 1 + draw
