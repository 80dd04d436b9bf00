"""What a witness makes of another log's checkpoint: does it continue what was seen?

The same rules at both ends: the coordinator witnesses each node's log, and
each node the coordinator's.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hansa.contract.merkle import EMPTY_ROOT, verify_consistency
from hansa.contract.notes import Checkpoint

# A claim of a researcher or auditor rests on so many witnesses, where there are so many.
WITNESSES_NEEDED: Final = 2


class Growth(enum.Enum):
    """How a checkpoint stands to what was seen of its log."""

    SAME = enum.auto()
    GROWN = enum.auto()
    # The proof begins elsewhere; to be asked for again from the size that was seen.
    UNPROVEN = enum.auto()
    # Another tree of the same size, a shorter one, or one that cannot be proven to go on.
    FORKED = enum.auto()


@dataclass(frozen=True, slots=True)
class Seen:
    """Where a log stood when it was last verified; at first contact, nowhere."""

    size: int = 0
    root: bytes = EMPTY_ROOT


def growth(seen: Seen, told: Checkpoint, *, proven_from: int, proof: Sequence[bytes]) -> Growth:
    """Return how ``told``, whose signature was verified, stands to ``seen``.

    Args:
        seen: what the witness has verified and stored.
        told: what the log says now.
        proven_from: the size at which ``proof`` begins.
        proof: that the log only grew since.
    """
    if told.size <= seen.size:
        return Growth.SAME if (told.size, told.root) == (seen.size, seen.root) else Growth.FORKED
    if proven_from != seen.size:
        return Growth.UNPROVEN
    sound = verify_consistency(seen.size, told.size, proof, old_root=seen.root, new_root=told.root)
    return Growth.GROWN if sound else Growth.FORKED


def needed_of(witnesses: int) -> int:
    """Return how many cosignatures a checkpoint needs where there are ``witnesses``."""
    return min(WITNESSES_NEEDED, witnesses)


@dataclass(frozen=True, slots=True)
class LogNews:
    """What one side says of the audit logs, its own and the other's; empty where nothing is new.

    Attributes:
        checkpoint: its own log's, as a signed note.
        proven_from: the size at which ``proof`` begins.
        proof: that its own log only grew since.
        witnessed_size: up to where it has verified the other's log.
        cosignature: its line on the other's checkpoint of that size.
    """

    checkpoint: bytes = b""
    proven_from: int = 0
    proof: tuple[bytes, ...] = ()
    witnessed_size: int = 0
    cosignature: bytes = b""


NO_NEWS: Final = LogNews()
