"""The coordinator's figures for its operator's monitoring (docs/reference/metrics.md)."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from sqlalchemy import event as orm_events
from sqlalchemy.orm import Session

from coordinator.store.database import Database
from coordinator.store.figures import Figures, read_figures
from hansa.contract.errors import Reason
from hansa.contract.states import JobState, RunState
from hansa.runtime.clock import Clock
from hansa.runtime.logging import Event
from hansa.runtime.metrics import (
    LONG_SECONDS,
    SHORT_SECONDS,
    Absences,
    Counted,
    counting,
    measure_lag,
    serving_metrics,
    timing_transactions,
)
from hansa.runtime.supervisor import until_first_ends

_log = structlog.get_logger(__name__)
_READ_SECONDS: Final = 5.0
_REASONS: Final = frozenset(reason.value for reason in Reason)

Loop = Callable[[], Awaitable[None]]


class CoordinatorMetrics:
    """All figures, and the loop that keeps them; made once, where a port is set."""

    def __init__(self, database: Database, clock: Clock, folder: Path) -> None:
        """Take what is looked at: the store, the time, and the folder whose disk it is."""
        self._database, self._clock, self._folder = database, clock, folder
        # The epoch of each node's newest session.
        self._epochs: dict[str, int] = {}
        self.registry = registry = CollectorRegistry()
        self._jobs = Gauge("hansa_coordinator_jobs", "Jobs by state.", ["state"], registry=registry)
        self._runs = Gauge("hansa_coordinator_runs", "Runs by state.", ["state"], registry=registry)
        self._depth = _by_node("outbox_depth", "Commands that the node has not acknowledged.", registry)
        self._age = _by_node("outbox_oldest_seconds", "Age of the oldest of them.", registry)
        self._connected = _by_node("node_connected", "1 while the node has a session.", registry)
        self._ahead = _by_node("node_clock_ahead_seconds", "By how much a connected node's clock is ahead.", registry)
        self._disk = Gauge("hansa_coordinator_disk_free_bytes", "Free on the state folder's disk.", registry=registry)
        self._read = Gauge("hansa_coordinator_figures_timestamp_seconds", "When these were read.", registry=registry)
        self._lag = Histogram(
            "hansa_coordinator_loop_lag_seconds", "Event loop late by.", buckets=SHORT_SECONDS, registry=registry
        )
        self._transactions = Histogram(
            "hansa_coordinator_transaction_seconds", "Store.", ["outcome"], buckets=SHORT_SECONDS, registry=registry
        )
        self._away = Absences(
            Histogram(
                "hansa_coordinator_node_reattach_seconds",
                "From the end of a node's session to its next.",
                buckets=LONG_SECONDS,
                registry=registry,
            )
        )

    async def run(self, port: int) -> None:
        """Keep the figures and serve them on ``port`` of loopback, for ever."""
        timing = timing_transactions(orm_events, Session, self._transactions)
        with counting(self._rules()), timing:
            async with serving_metrics(self.registry, port):
                _log.info("metrics_served", port=port)
                await until_first_ends(self._keep(), measure_lag(self._lag))

    def _rules(self) -> Mapping[str, tuple[Callable[[Event], None], ...]]:
        def count(name: str, words: str, label: str = "") -> Callable[[Event], None]:
            labels = [label] if label else []
            counter = Counter(f"hansa_coordinator_{name}", words, labels, registry=self.registry)
            return Counted(counter, label, _REASONS).take

        return {
            "call_refused": (count("calls_refused", "Calls that were refused, by reason.", "reason"),),
            "call_crashed": (count("calls_crashed", "Calls that ended in a fault of ours."),),
            "session_opened": (count("sessions_opened", "Sessions that nodes opened."), self._see_session),
            "session_ended": (count("sessions_ended", "Sessions that ended."), self._see_end),
            "session_silent": (count("sessions_silent", "Sessions that ended because nothing was heard."),),
            "event_refused": (count("events_refused", "Nodes' events that do not fit, by reason.", "reason"),),
            "release_refused": (count("releases_refused", "Releases that do not hold, by reason.", "reason"),),
            "node_quarantined": (count("quarantines", "Nodes that were set apart."),),
            "summary_stored": (count("summaries_stored", "Released summaries that arrived."),),
            "job_ended": (count("jobs_ended", "Jobs that ended."),),
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

    async def _keep(self) -> None:
        while True:
            try:
                self._show(await self._database.run(read_figures))
            except Exception:
                # A store that cannot be read now is the operator's to see, by this and by the stale time.
                _log.exception("figures_not_read")
            await asyncio.sleep(_READ_SECONDS)

    def _show(self, figures: Figures) -> None:
        now = self._clock()
        for job_state in JobState:
            self._jobs.labels(job_state.value).set(figures.jobs.get(job_state.value, 0))
        for run_state in RunState:
            self._runs.labels(run_state.value).set(figures.runs.get(run_state.value, 0))
        for node, connected in figures.connected.items():
            outbox = figures.outboxes.get(node)
            oldest = None if outbox is None else outbox.oldest
            self._connected.labels(node).set(connected)
            self._depth.labels(node).set(0 if outbox is None else outbox.depth)
            self._age.labels(node).set(0 if oldest is None else max((now - oldest).total_seconds(), 0))
            self._ahead.labels(node).set(figures.clocks.get(node, 0))
        self._disk.set(shutil.disk_usage(self._folder).free)
        self._read.set(now.timestamp())


def _by_node(name: str, words: str, registry: CollectorRegistry) -> Gauge:
    return Gauge(f"hansa_coordinator_{name}", words, ["node"], registry=registry)


def metrics_loops(metrics: Callable[[], CoordinatorMetrics], port: int | None) -> Mapping[str, Loop]:
    """Return the loop that serves figures; none where no port is set."""
    if port is None:
        return {}

    async def serve() -> None:
        await metrics().run(port)

    return {"metrics": serve}
