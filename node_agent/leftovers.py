"""Ends what runs on this host and is no execution any more.

A worker hears by its next beat that an execution is over, and kills it. One that
is frozen, or was killed while the agent was away, does not; then the agent does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError
from node_agent.run_facts import facts_of
from node_agent.run_rules import STARTED, RunFacts
from node_agent.store.database import Database
from node_agent.store.models import RunRow

_log = structlog.get_logger(__name__)
_EVERY_SECONDS: Final = 4.0


class Premises(Protocol):
    """What there is on this host. All calls block."""

    def executions(self) -> Sequence[tuple[str, int]]:
        """Return the executions (run id, number) that have a control group here, empty or not."""

    def clear_execution(self, run_id: str, execution: int) -> bool:
        """Kill what there is of an execution on this host; return whether nothing of it runs here."""

    def forget(self, needed: Sequence[RunFacts]) -> None:
        """Remove what dead workers have left of themselves, but for those of ``needed``."""


@dataclass(slots=True, kw_only=True)
class Leftovers:
    """The agent's loop over what runs on its host."""

    database: Database
    premises: Premises
    # What was there at the last look and had no right to: a living worker has this long to end it itself.
    _strays: set[tuple[str, int]] = field(default_factory=set)

    async def run(self) -> None:
        """Look at the start and every few seconds."""
        while True:
            try:
                await self.step()
            except (SQLAlchemyError, HansaError, OSError):
                # A full disk, say: nothing was half done, and it is looked at again.
                _log.exception("leftovers_not_seen")
            await asyncio.sleep(_EVERY_SECONDS)

    async def step(self) -> None:
        """End what has no right to run since the last look."""
        # In this order: what has a group was claimed before.
        found = set(await asyncio.to_thread(self.premises.executions))
        current = await self.database.run(_current)
        strays = found - {(run.run_id, run.execution) for run in current}
        for run_id, execution in sorted(strays & self._strays):
            gone = await asyncio.to_thread(self.premises.clear_execution, run_id, execution)
            _log.warning("leftover_killed", run_id=run_id, execution=execution, gone=gone)
        self._strays = strays
        await asyncio.to_thread(self.premises.forget, current)


def _current(session: Session) -> Sequence[RunFacts]:
    started = [state.value for state in STARTED]
    return [facts_of(run) for run in session.scalars(select(RunRow).where(RunRow.state.in_(started)))]
