"""Deletes what is no longer needed: folders of ended runs, as the policy says, and events that were acknowledged.

And sees to it that what is still needed does not grow without a bound.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import is_run_id
from hansa.contract.retention import KEPT_AFTER_ACK, MOST_UNSENT_BYTES
from hansa.contract.states import RUN_TERMINAL
from hansa.runtime.clock import Clock
from node_agent.config import StateFolder
from node_agent.policy.policy import Policy
from node_agent.reporting import Acknowledged
from node_agent.store.database import Database
from node_agent.store.ledger import forget
from node_agent.store.models import RunRow
from node_agent.store.outbox import coordinator_seen, note_acknowledged, prune_events, unsent_bytes

_log = structlog.get_logger(__name__)
_EVERY_SECONDS: Final = 3600.0
_COUNT_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Purges what is kept for the operator, once its time is over."""

    database: Database
    state: StateFolder
    policy: Callable[[], Policy]
    clock: Clock
    acknowledged: Acknowledged = field(default_factory=Acknowledged)

    async def run(self) -> None:
        """Purge at the start and once an hour."""
        while True:
            try:
                await self.purge()
            except HansaError as error:
                # A full disk is no reason to end; purging is what helps.
                _log.warning("purge_put_off", reason=error.reason.value)
                if error.reason is not Reason.STORE_FULL:
                    raise
            await asyncio.sleep(_EVERY_SECONDS)

    async def purge(self) -> None:
        """Delete the folders of runs that ended longer ago than ``run_days``.

        The run itself stays in the store: what was decided is not forgotten.
        Of the ledger of jobs, what can come no more is; of the outbox, what
        the coordinator has had for thirty days.
        """
        now = self.clock()
        before = now - timedelta(days=self.policy().retention.run_days)
        for run_id in await self.database.run(lambda session: _ended(session, before)):
            folder = self.state.runs / run_id
            # What is deleted with all that is in it had better be below our own folder.
            if is_run_id(run_id) and await asyncio.to_thread(folder.exists):
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
                _log.info("run_folder_purged", run_id=run_id)
        # Last: on a full disk it is the folders' room that lets the store write again.
        await self.database.run(lambda session: self._tidy(session, now))

    def _tidy(self, session: Session, now: datetime) -> None:
        forget(session, now)
        if self.acknowledged.upto is None:
            # What the coordinator has now is not known: it may have been restored from a backup.
            return
        note_acknowledged(session, self.acknowledged.upto, now)
        pruned = prune_events(session, now - KEPT_AFTER_ACK)
        if pruned:
            _log.info("events_pruned", count=pruned)


@dataclass(slots=True, kw_only=True)
class Backlog:
    """How much the node owes to the coordinator; from a bound on it takes no new work, and drops nothing."""

    database: Database
    acknowledged: Acknowledged
    most_bytes: int = MOST_UNSENT_BYTES
    unsent: int = 0

    @property
    def is_full(self) -> bool:
        """Whether so much is unsent that new work would make too much of it."""
        return self.unsent >= self.most_bytes

    async def run(self) -> None:
        """Count every half minute, for ever."""
        while True:
            await self.count()
            await asyncio.sleep(_COUNT_SECONDS)

    async def count(self) -> None:
        """Count what is unsent."""
        upto, was = self.acknowledged.upto, self.is_full
        self.unsent = await self.database.run(
            lambda session: unsent_bytes(session, coordinator_seen(session).acked if upto is None else upto)
        )
        if self.is_full is not was:
            _log.warning("backlog_full" if self.is_full else "backlog_has_room", unsent_bytes=self.unsent)


def _ended(session: Session, before: datetime) -> Sequence[str]:
    ended = [state.value for state in RUN_TERMINAL]
    return session.scalars(select(RunRow.run_id).where(RunRow.state.in_(ended), RunRow.updated_at < before)).all()
