"""The rules of a numbered, hash-chained outbox, for both directions.

The sender stores an entry before it sends it; the receiver applies it and
moves its cursor in one transaction. Numbers start at 1. What the rules decide
is returned as a value, so that the simulator and both daemons run the same.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hansa.contract.digests import CHAIN_START, chain_hash


@dataclass(frozen=True, slots=True)
class Head:
    """A place in a chain: the last number and the hash of its entry."""

    seq: int = 0
    hash: bytes = CHAIN_START

    def after(self, body: bytes) -> Head:
        """Return the head once ``body`` is appended."""
        return Head(self.seq + 1, chain_hash(self.hash, body))


class Verdict(enum.Enum):
    """What a receiver does with an entry."""

    APPLY = enum.auto()
    REPEAT = enum.auto()  # applied before: acknowledge again
    GAP = enum.auto()  # an entry is missing: close the stream and attach anew
    FORK = enum.auto()  # another history: quarantine


def judge(cursor: Head, *, seq: int, prev_hash: bytes) -> Verdict:
    """Say what to do with entry ``seq`` given the last one applied."""
    if seq <= cursor.seq:
        return Verdict.REPEAT
    if seq > cursor.seq + 1:
        return Verdict.GAP
    return Verdict.APPLY if prev_hash == cursor.hash else Verdict.FORK


def heads_agree(cursor: Head, head: Head, hash_at_cursor: bytes) -> bool:
    """Say whether a sender's outbox continues what the receiver has applied.

    False after a restored backup (the sender is behind what was received) or
    a fork (another entry stands at the receiver's cursor).

    Args:
        cursor: the last entry the receiver has applied.
        head: the last entry of the sender.
        hash_at_cursor: the sender's hash at ``cursor.seq``; empty if unknown.
    """
    return head.seq >= cursor.seq and hash_at_cursor == cursor.hash
