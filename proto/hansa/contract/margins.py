"""When a store's disk has room for new work, and when for the reserve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Margins:
    """How much is held in reserve, and how much has to be free beside it for new work; in bytes."""

    reserve: int = 64 * MIB
    floor: int = 128 * MIB


def may_remake(free: int, margins: Margins) -> bool:
    """Say whether there is room for the reserve with the floor beside it; so it is not made and lost in turns."""
    return free >= margins.floor + margins.reserve


def shortage(free: int, margins: Margins, *, reserved: bool) -> str:
    """Return why new work is to be refused; empty if it is not.

    Args:
        free: bytes that are free beside the reserve.
        margins: what there should be.
        reserved: whether the reserve is there.
    """
    if not reserved:
        return "the disk was full, and there is no room yet for the reserve"
    return "less is free on the disk than new work needs" if free < margins.floor else ""
