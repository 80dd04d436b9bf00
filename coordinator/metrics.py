"""The coordinator's figures for its operator's monitoring (docs/reference/metrics.md)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from sqlalchemy import event as orm_events
from sqlalchemy.orm import Session

from coordinator.store.database import Database
from coordinator.store.figures import Figures, read_figures
from hansa.contract.errors import Reason
from hansa.contract.states import JobState, RunState
from hansa.runtime.clock import Clock
from hansa.runtime.logging import Event
from hansa.runtime.metrics import Board, Orm, Rules

_REASONS: Final = frozenset(reason.value for reason in Reason)

Loop = Callable[[], Awaitable[None]]


class CoordinatorMetrics:
    """All figures; made once, where a port is set."""

    def __init__(self, database: Database, clock: Clock, folder: Path) -> None:
        """Take what is looked at: the store, the time, and the folder whose disk it is."""
        self._database, self._clock = database, clock
        self.board = board = Board("hansa_coordinator", folder=folder, clock=clock)
        self._jobs = board.gauge("jobs", "Jobs by state.", "state")
        self._runs = board.gauge("runs", "Runs by state.", "state")
        self._depth = board.gauge("outbox_depth", "Commands that the node has not acknowledged.", "node")
        self._age = board.gauge("outbox_oldest_seconds", "Age of the oldest of them.", "node")
        self._connected = board.gauge("node_connected", "1 while the node has a session.", "node")
        self._ahead = board.gauge("node_clock_ahead_seconds", "By how much a connected node's clock is ahead.", "node")
        self._away = board.absences("From the end of a node's session to its next.")
        # The epoch of each node's newest session.
        self._epochs: dict[str, int] = {}

    async def run(self, port: int) -> None:
        """Keep the figures and serve them on ``port`` of loopback, for ever."""
        await self.board.run(port, self.rules(), self.read, Orm(orm_events, Session))

    def rules(self) -> Rules:
        """Return what is counted, by the name of its event in the log; once."""
        count = self.board.count
        return {
            "call_refused": [count("calls_refused", "Calls that were refused.", "reason", _REASONS)],
            "call_crashed": [count("calls_crashed", "Calls that ended in a fault of ours.")],
            "session_opened": [count("sessions_opened", "Sessions that nodes opened."), self._see_session],
            "session_ended": [count("sessions_ended", "Sessions that ended."), self._see_end],
            "session_silent": [count("sessions_silent", "Sessions that ended because nothing was heard.")],
            "event_refused": [count("events_refused", "Nodes' events that do not fit.", "reason", _REASONS)],
            "release_refused": [count("releases_refused", "Releases that do not hold.", "reason", _REASONS)],
            "node_quarantined": [count("quarantines", "Nodes that were set apart when they attached.")],
            "summary_stored": [count("summaries_stored", "Released summaries that arrived.")],
            "job_ended": [count("jobs_ended", "Jobs that ended.")],
        }

    def _see_session(self, event: Event) -> None:
        node, epoch = str(event.get("node")), int(event.get("epoch", 0))
        self._epochs[node] = epoch
        self._away.came(node)

    def _see_end(self, event: Event) -> None:
        # The end of a session that a newer one has fenced is no absence.
        node = str(event.get("node"))
        if self._epochs.get(node) == event.get("epoch"):
            self._away.went(node)

    async def read(self) -> None:
        """Read the store, and show what it holds now."""
        self._show(await self._database.run(read_figures))

    def _show(self, figures: Figures) -> None:
        for job_state in JobState:
            self._jobs.labels(job_state.value).set(figures.jobs.get(job_state.value, 0))
        for run_state in RunState:
            self._runs.labels(run_state.value).set(figures.runs.get(run_state.value, 0))
        for node, connected in figures.connected.items():
            outbox = figures.outboxes.get(node)
            oldest = None if outbox is None else outbox.oldest
            self._connected.labels(node).set(connected)
            self._depth.labels(node).set(0 if outbox is None else outbox.depth)
            self._age.labels(node).set(0 if oldest is None else max((self._clock() - oldest).total_seconds(), 0))
            self._ahead.labels(node).set(figures.clocks.get(node, 0))


def metrics_loops(metrics: Callable[[], CoordinatorMetrics], port: int | None) -> Mapping[str, Loop]:
    """Return the loop that serves figures; none where no port is set."""
    if port is None:
        return {}

    async def serve() -> None:
        await metrics().run(port)

    return {"metrics": serve}
