"""What a change at the node has to tell, and to whom.

A change writes its event in its own transaction (``Reporter`` makes the bytes,
the link sends them); after the commit it rings a bell, so that nobody polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol, cast

from sqlalchemy import CursorResult, update
from sqlalchemy.orm import Session

from hansa.contract.envelope import Signed
from hansa.contract.states import IllegalTransitionError, RunEvent, RunState, next_run_state
from node_agent.audit.entries import run_ended
from node_agent.audit.log import append
from node_agent.store.models import DatasetRow, RunRow
from node_agent.store.outbox import append_event

# Ends that no decision on an offer or on a summary has recorded.
_ENDS_WITHOUT_SUMMARY: Final = frozenset({RunState.FAILED, RunState.EXPIRED, RunState.CANCELLED})


class Reporter(Protocol):
    """Makes the bodies of events; implemented by the link, which knows the wire."""

    def run(self, run: RunRow, now: datetime) -> bytes:
        """Return the report of ``run``'s present state."""

    def released(self, run: RunRow, outgoing: bytes | None, statement: Signed, now: datetime) -> bytes:
        """Return the report that ``run``'s summary was released as these bytes, with the statement of it.

        ``outgoing`` is None where a restored store has the statement only.
        """

    def job(self, run: RunRow, now: datetime) -> bytes:
        """Return the report of ``run``'s job, as its researcher signed it."""

    def inventory(self, datasets: Sequence[DatasetRow], now: datetime) -> bytes:
        """Return the report of all datasets that the node offers."""


@dataclass(frozen=True, slots=True)
class Bells:
    """Wake the loops that have something to do after a commit."""

    events: asyncio.Event = field(default_factory=asyncio.Event)
    queue: asyncio.Event = field(default_factory=asyncio.Event)
    spool: asyncio.Event = field(default_factory=asyncio.Event)

    def ring(self) -> None:
        """Wake all of them; a loop with nothing to do goes back to sleep."""
        self.events.set()
        self.queue.set()
        self.spool.set()


@dataclass(slots=True)
class Acknowledged:
    """The last event that the coordinator has, as the newest session says; None before the first session."""

    upto: int | None = None


def advance(  # noqa: PLR0913 - one change of state, whole
    session: Session,
    run: RunRow,
    event: RunEvent,
    *,
    reporter: Reporter,
    now: datetime,
    reason: str = "",
    incident: str = "",
) -> None:
    """Move ``run`` along the table and write the event that says so.

    An end that comes of no decision on the offer or the summary is put into
    the audit log; whoever makes such a decision records it.

    Works inside the caller's transaction, which has read ``run`` in it.

    Raises:
        IllegalTransitionError: the run's state does not allow it.
    """
    before = RunState(run.state)
    after = next_run_state(before, event)
    session.flush()
    # One statement compares and writes: whatever this transaction believes, an end is final.
    moved = session.execute(
        update(RunRow)
        .where(RunRow.run_id == run.run_id, RunRow.attempt == run.attempt, RunRow.state == before)
        .values(state=after.value, reason=reason, incident=incident, updated_at=now)
        .execution_options(synchronize_session=False)
    )
    if cast("CursorResult[Any]", moved).rowcount != 1:
        raise IllegalTransitionError(before, event)
    session.refresh(run, ("state", "reason", "incident", "updated_at"))
    if RunState(run.state) in _ENDS_WITHOUT_SUMMARY:
        append(session, run_ended(run), now)
    append_event(session, reporter.run(run, now), now)
