"""The two ends of an outbox in one session, and what a repeat by a client is: no I/O, no clock.

Both daemons and the simulator run these. What has to be durable (the outbox,
the receiver's cursor) is the caller's: it hands the cursor in inside a
transaction, and sends what it is told to only after the commit.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hansa.contract.errors import HansaError, Reason
from hansa.contract.outbox import Head, Verdict, judge


class Sender:
    """What goes out next, in one session: in order, each entry once, at most ``window`` of them in flight.

    An entry that was not acknowledged goes out again in the next session,
    which begins behind what the receiver has applied.
    """

    def __init__(self, applied: int, window: int) -> None:
        """Begin behind entry ``applied``, the last that the receiver has."""
        self._sent = self._acked = applied
        self._window = window

    @property
    def after(self) -> int:
        """The number of the entry that was sent last."""
        return self._sent

    @property
    def acked(self) -> int:
        """The number up to which the receiver has applied."""
        return self._acked

    @property
    def room(self) -> int:
        """How many more entries may be in flight."""
        return self._window - (self._sent - self._acked)

    def sending(self, seq: int) -> None:
        """Note that ``seq`` is about to be written: its acknowledgement may come while it is."""
        self._sent = seq

    def acknowledged(self, upto_seq: int) -> bool:
        """Take an acknowledgement, which covers all before it; return whether it told something new.

        Raises:
            HansaError: ``PROTOCOL_VIOLATION``; what it names was never sent.
        """
        if upto_seq > self._sent:
            raise HansaError(Reason.PROTOCOL_VIOLATION, "An entry is acknowledged that was not sent.")
        if upto_seq <= self._acked:
            return False
        self._acked = upto_seq
        return True


class Receiver:
    """Where a receiver stands, inside the transaction that applies what came."""

    def __init__(self, cursor: Head) -> None:
        """Take the cursor as it is stored."""
        self._cursor = cursor

    @property
    def cursor(self) -> Head:
        """The last entry applied; stored in the same transaction, acknowledged after its commit."""
        return self._cursor

    def judge(self, seq: int, prev_hash: bytes) -> Verdict:
        """Say what is to be done with an entry."""
        return judge(self._cursor, seq=seq, prev_hash=prev_hash)

    def applied(self, body: bytes) -> Head:
        """Move behind the entry that was judged ``APPLY``, and return the new cursor."""
        self._cursor = self._cursor.after(body)
        return self._cursor


class Repeat(enum.Enum):
    """What a request under a client's own id is."""

    NEW = enum.auto()
    AGAIN = enum.auto()


def repeat(known: str | bytes | None, digest: str | bytes, *, field: str) -> Repeat:
    """Say whether a request is new or came before; the same id with other content is refused.

    Args:
        known: the digest that is stored under the id; None where there is none.
        digest: of the request, whole.
        field: the name of the id.

    Raises:
        HansaError: ``IDEMPOTENCY_MISMATCH``.
    """
    if known is None:
        return Repeat.NEW
    if known != digest:
        raise HansaError(Reason.IDEMPOTENCY_MISMATCH, field=field)
    return Repeat.AGAIN


@dataclass(frozen=True, slots=True)
class Released:
    """What a receiver knows of a run's release: the digest of the statement, and of what left. Empty: nothing yet."""

    statement: str = ""
    subject: bytes = b""


def check_one_release(known: Released, told: Released) -> Repeat:
    """Say whether a release is new or the one that is known; a run has one, of one content, for ever.

    Raises:
        HansaError: ``SUMMARY_CONFLICT``.
    """
    if known.statement and known.statement != told.statement:
        raise HansaError(Reason.SUMMARY_CONFLICT, "The node has signed two statements for one run.")
    if known.subject and known.subject != told.subject:
        raise HansaError(Reason.SUMMARY_CONFLICT, "The node has announced or uploaded another summary.")
    return Repeat.AGAIN if known.statement else Repeat.NEW
