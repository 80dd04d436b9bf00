"""Release classes: how many people look at a summary before it leaves."""

from __future__ import annotations

import enum
from typing import Final


class ReleaseClass(enum.StrEnum):
    """From the least strict to the strictest; wire format."""

    AUTO = "auto"  # the disclosure rules alone
    MANUAL = "manual"  # and one output checker
    DUAL = "dual"  # and two different output checkers


_ORDER: Final = tuple(ReleaseClass)


def stricter(one: ReleaseClass, other: ReleaseClass) -> ReleaseClass:
    """Return the stricter of two classes: the job's and the node's, say."""
    return max(one, other, key=_ORDER.index)


def people_needed(release_class: ReleaseClass) -> int:
    """Return how many different people have to say yes."""
    return _ORDER.index(release_class)
