"""Uploads released summaries until the coordinator has stored them.

Sends the bytes that the decision was about, the same at every try. Takes
``ReleasedSummary`` and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError, Reason
from hansa.runtime.clock import Clock
from node_agent.airlock.gate import RELEASE
from node_agent.airlock.released import NotReleasedError, ReleasedSummary, released_summary
from node_agent.reporting import Bells
from node_agent.store.database import Database
from node_agent.store.models import SummaryRow

_log = structlog.get_logger(__name__)

# Returns once the coordinator has stored the summary; raises HansaError.
Send = Callable[[ReleasedSummary], Awaitable[None]]

# A coordinator that is away ends the session too; the next one begins anew.
_AWAY_WAIT: Final = timedelta(seconds=2)
# A refusal will hardly change by itself, but an operator may mend its cause.
_REFUSED_WAIT: Final = timedelta(minutes=5)
# What passes without anybody's help.
_PASSING: Final = frozenset({Reason.COORDINATOR_UNREACHABLE, Reason.RUN_UNKNOWN})


@dataclass(frozen=True, slots=True)
class _Parked:
    """A summary that was not taken: when it is tried again, and how long that is after the last try."""

    until: datetime
    wait: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploader:
    """The spool of one node."""

    database: Database
    bells: Bells
    clock: Clock

    async def run(self, send: Send) -> None:
        """Send what was released, now and whenever the bell rings.

        A summary that is refused stays in the spool, is tried again later, and
        holds up neither the others nor the session.
        """
        parked: dict[str, _Parked] = {}
        while True:
            self.bells.spool.clear()
            for run_id in await self.database.run(_pending):
                if run_id not in parked or parked[run_id].until <= self.clock():
                    await self._try(run_id, send, parked)
            try:
                async with asyncio.timeout(self._rest(parked)):
                    await self.bells.spool.wait()
            except TimeoutError:
                continue

    async def _try(self, run_id: str, send: Send, parked: dict[str, _Parked]) -> None:
        before = parked.pop(run_id, None)
        try:
            released = await self.database.run(lambda session: _released(session, run_id))
            await send(released)
        except NotReleasedError:
            _log.error("summary_damaged", run_id=run_id)
            parked[run_id] = self._parked(_REFUSED_WAIT)
        except HansaError as error:
            tell = _log.info if error.reason in _PASSING else _log.error
            tell("summary_not_uploaded", run_id=run_id, reason=error.reason.value, detail=str(error))
            parked[run_id] = self._parked(_wait_after(error, before))
        else:
            await self._mark(released)

    def _parked(self, wait: timedelta) -> _Parked:
        return _Parked(self.clock() + wait, wait)

    def _rest(self, parked: dict[str, _Parked]) -> float | None:
        """Return the seconds until a parked summary is due; None if none is parked."""
        if not parked:
            return None
        first = min(one.until for one in parked.values())
        return max((first - self.clock()).total_seconds(), 0.0)

    async def _mark(self, released: ReleasedSummary) -> None:
        now = self.clock()
        await self.database.run(lambda session: _mark(session, released.run_id, now))
        _log.info("summary_uploaded", run_id=released.run_id, size=len(released.summary))


def _wait_after(refusal: HansaError, before: _Parked | None) -> timedelta:
    """Return how long a summary rests that was not taken: what the coordinator asks for, if that is not long.

    A coordinator that was restored hears of the run a moment after the session
    has begun, by an event. Runs whose deadline is over it never takes back: it
    is asked ever more seldom.
    """
    if refusal.reason is Reason.COORDINATOR_UNREACHABLE:
        return _AWAY_WAIT
    if refusal.reason is Reason.RUN_UNKNOWN:
        return _AWAY_WAIT if before is None else min(2 * before.wait, _REFUSED_WAIT)
    asked = timedelta(seconds=min(refusal.retry_seconds, _REFUSED_WAIT.total_seconds()))
    return max(asked, _AWAY_WAIT) if asked else _REFUSED_WAIT


def _pending(session: Session) -> Sequence[str]:
    # The names only: after days without a coordinator the bytes may not fit into memory.
    return session.scalars(
        select(SummaryRow.run_id)
        .where(SummaryRow.decision == RELEASE, SummaryRow.uploaded_at.is_(None))
        .order_by(SummaryRow.decided_at)
    ).all()


def _released(session: Session, run_id: str) -> ReleasedSummary:
    return released_summary(session.get_one(SummaryRow, run_id))


def _mark(session: Session, run_id: str, now: datetime) -> None:
    session.get_one(SummaryRow, run_id).uploaded_at = now
