"""The node's figures for its own operator's monitoring (docs/reference/metrics.md). They never leave the machine."""

from __future__ import annotations

import asyncio
import math
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import event as orm_events
from sqlalchemy.orm import Session

from hansa.contract.errors import Reason, RunReason
from hansa.contract.states import RUN_TERMINAL, RunState
from hansa.runtime.clock import Clock
from hansa.runtime.logging import Event
from hansa.runtime.metrics import Board, Orm, Rules
from node_agent.store.database import Database
from node_agent.store.figures import Figures, read_figures

_REASONS: Final = frozenset(reason.value for reason in (*Reason, *RunReason))
_ONLINE: Final = "ONLINE"
_COORDINATOR: Final = "coordinator"

Loop = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What the figures are read from, besides the store.

    ``acked`` returns the last event that the coordinator has acknowledged, None where that is not known yet,
    ``online`` whether there is a session, ``clock_ahead`` the seconds that our
    clock is ahead, ``certificate_end`` the end of the certificate;
    ``reach_broker`` raises where the broker does not answer, and blocks.
    """

    folder: Path
    clock: Clock
    acked: Callable[[], int | None]
    online: Callable[[], bool]
    clock_ahead: Callable[[], int]
    certificate_end: Callable[[], datetime]
    reach_broker: Callable[[], object]


class NodeMetrics:
    """All figures; made once, where a port is set."""

    def __init__(self, database: Database, looked: Looked) -> None:
        """Take what is looked at."""
        self._database, self._looked = database, looked
        self.board = board = Board("hansa_node", folder=looked.folder, clock=looked.clock)
        self._runs = board.gauge("runs", "Runs by state.", "state")
        self._ended = board.gauge("runs_ended", "Ended runs by outcome.", "state", "reason")
        self._depth = board.gauge("outbox_depth", "Events that the coordinator has not acknowledged.")
        self._age = board.gauge("outbox_oldest_seconds", "Age of the oldest of them.")
        self._online = board.gauge("online", "1 while there is a session with the coordinator.")
        self._ahead = board.gauge("clock_ahead_seconds", "By how much our clock is ahead of the coordinator's.")
        self._certificate = board.gauge("certificate_left_seconds", "Until the certificate ends.")
        self._broker = board.gauge("broker_reachable", "1 if the broker answered last time.")
        self._away = board.absences("From the loss of the coordinator to the next session.")

    async def run(self, port: int) -> None:
        """Keep the figures and serve them on ``port`` of loopback, for ever."""
        await self.board.run(port, self._rules(), self.read, Orm(orm_events, Session))

    def _rules(self) -> Rules:
        count = self.board.count
        return {
            "link_state": [self._see_link],
            "session_ended": [count("sessions_ended", "Sessions that ended.", "reason", _REASONS)],
            "offer_accepted": [count("offers_accepted", "Offers that were taken.")],
            "offer_waits": [count("offers_waiting", "Offers that asked for an approval.")],
            "offer_declined": [count("offers_declined", "Offers that were declined.", "reason", _REASONS)],
            "local_call_refused": [count("calls_refused", "Local calls that were refused.", "reason", _REASONS)],
            "worker_lost": [count("leases_lost", "Executions whose worker died or fell silent.")],
            "enqueue_failed": [count("enqueues_failed", "Messages that the broker did not take.")],
            "store_not_writable": [count("store_not_writable", "Times that the store could not write.")],
            "summary_uploaded": [count("summaries_uploaded", "Released summaries that the coordinator has.")],
        }

    def _see_link(self, event: Event) -> None:
        if event.get("state") == _ONLINE:
            self._away.came(_COORDINATOR)
        else:
            self._away.went(_COORDINATOR)

    async def read(self) -> None:
        """Look at the broker and the store, and show how they stand now."""
        self._broker.set(await self._is_broker_there())
        acked = self._looked.acked()
        figures = await self._database.run(lambda session: read_figures(session, acked or 0))
        self._show(figures)
        self._show_outbox(figures, known=acked is not None)

    async def _is_broker_there(self) -> bool:
        try:
            await asyncio.to_thread(self._looked.reach_broker)
        except Exception:
            # Whatever the broker's library raises: it did not answer.
            return False
        return True

    def _show(self, figures: Figures) -> None:
        looked = self._looked
        by_state: Tally[str] = Tally()
        for (state, reason), count in figures.runs.items():
            by_state[state] += count
            if RunState(state) in RUN_TERMINAL:
                self._ended.labels(state, reason if reason in _REASONS or not reason else "OTHER").set(count)
        for one in RunState:
            self._runs.labels(one.value).set(by_state[one.value])
        self._online.set(looked.online())
        self._ahead.set(looked.clock_ahead())
        self._certificate.set((looked.certificate_end() - looked.clock()).total_seconds())

    def _show_outbox(self, figures: Figures, *, known: bool) -> None:
        """Show what waits for the coordinator; no number before it has said what it has."""
        oldest = figures.outbox_oldest
        age = 0.0 if oldest is None else max((self._looked.clock() - oldest).total_seconds(), 0)
        self._depth.set(figures.outbox_depth if known else math.nan)
        self._age.set(age if known else math.nan)


def metrics_loops(metrics: Callable[[], NodeMetrics], port: int | None) -> Mapping[str, Loop]:
    """Return the loop that serves figures; none where no port is set."""
    if port is None:
        return {}

    async def serve() -> None:
        await metrics().run(port)

    return {"metrics": serve}
