"""The node's figures for its own operator's monitoring (docs/reference/metrics.md). They never leave the machine."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from sqlalchemy import event as orm_events
from sqlalchemy.orm import Session

from hansa.contract.errors import Reason, RunReason
from hansa.contract.states import RUN_TERMINAL, RunState
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
from node_agent.store.database import Database
from node_agent.store.figures import Figures, read_figures

_log = structlog.get_logger(__name__)
_READ_SECONDS: Final = 5.0
_REASONS: Final = frozenset(reason.value for reason in (*Reason, *RunReason))
_ONLINE: Final = "ONLINE"

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
    """All figures, and the loop that keeps them; made once, where a port is set."""

    def __init__(self, database: Database, looked: Looked) -> None:
        """Take what is looked at."""
        self._database, self._looked = database, looked
        self.registry = registry = CollectorRegistry()
        self._runs = Gauge("hansa_node_runs", "Runs by state.", ["state"], registry=registry)
        self._ended = Gauge("hansa_node_runs_ended", "Ended runs by outcome.", ["state", "reason"], registry=registry)
        self._depth = _gauge("outbox_depth", "Events that the coordinator has not acknowledged.", registry)
        self._age = _gauge("outbox_oldest_seconds", "Age of the oldest of them.", registry)
        self._online = _gauge("online", "1 while there is a session with the coordinator.", registry)
        self._ahead = _gauge("clock_ahead_seconds", "By how much our clock is ahead of the coordinator's.", registry)
        self._certificate = _gauge("certificate_left_seconds", "Until the certificate ends.", registry)
        self._broker = _gauge("broker_reachable", "1 if the broker answered last time.", registry)
        self._disk = _gauge("disk_free_bytes", "Free on the state folder's disk.", registry)
        self._read = _gauge("figures_timestamp_seconds", "When these were read.", registry)
        self._lag = Histogram(
            "hansa_node_loop_lag_seconds", "Event loop late by.", buckets=SHORT_SECONDS, registry=registry
        )
        self._transactions = Histogram(
            "hansa_node_transaction_seconds", "Store.", ["outcome"], buckets=SHORT_SECONDS, registry=registry
        )
        self._away = Absences(
            Histogram(
                "hansa_node_reattach_seconds",
                "From the loss of the coordinator to the next session.",
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
            counter = Counter(f"hansa_node_{name}", words, labels, registry=self.registry)
            return Counted(counter, label, _REASONS).take

        return {
            "link_state": (self._see_link,),
            "session_ended": (count("sessions_ended", "Sessions that ended, by reason.", "reason"),),
            "offer_accepted": (count("offers_accepted", "Offers that were taken."),),
            "offer_waits": (count("offers_waiting", "Offers that asked for an approval."),),
            "offer_declined": (count("offers_declined", "Offers that were declined, by reason.", "reason"),),
            "local_call_refused": (count("calls_refused", "Local calls that were refused, by reason.", "reason"),),
            "worker_silent": (count("leases_lost", "Executions whose worker fell silent."),),
            "enqueue_failed": (count("enqueues_failed", "Messages that the broker did not take."),),
            "store_not_writable": (count("store_not_writable", "Times that the store could not write."),),
            "summary_uploaded": (count("summaries_uploaded", "Released summaries that the coordinator has."),),
        }

    def _see_link(self, event: Event) -> None:
        if event.get("state") == _ONLINE:
            self._away.came("coordinator")
        else:
            self._away.went("coordinator")

    async def _keep(self) -> None:
        while True:
            try:
                acked = self._looked.acked()
                figures = await self._database.run(lambda session: read_figures(session, acked or 0))  # noqa: B023
                self._show(figures)
                self._show_outbox(figures, known=acked is not None)
            except Exception:
                # A store that cannot be read now is the operator's to see, by this and by the stale time.
                _log.exception("figures_not_read")
            self._broker.set(await self._is_broker_there())
            await asyncio.sleep(_READ_SECONDS)

    async def _is_broker_there(self) -> bool:
        try:
            await asyncio.to_thread(self._looked.reach_broker)
        except Exception:
            return False
        return True

    def _show(self, figures: Figures) -> None:
        looked, now = self._looked, self._looked.clock()
        by_state: Tally[str] = Tally()
        for (state, reason), count in figures.runs.items():
            by_state[state] += count
            if RunState(state) in RUN_TERMINAL:
                self._ended.labels(state, reason if reason in _REASONS or not reason else "OTHER").set(count)
        for one in RunState:
            self._runs.labels(one.value).set(by_state[one.value])
        self._online.set(looked.online())
        self._ahead.set(looked.clock_ahead())
        self._certificate.set((looked.certificate_end() - now).total_seconds())
        self._disk.set(shutil.disk_usage(looked.folder).free)
        self._read.set(now.timestamp())

    def _show_outbox(self, figures: Figures, *, known: bool) -> None:
        """Show what waits for the coordinator; no number before it has said what it has."""
        oldest = figures.outbox_oldest
        age = 0.0 if oldest is None else max((self._looked.clock() - oldest).total_seconds(), 0)
        self._depth.set(figures.outbox_depth if known else math.nan)
        self._age.set(age if known else math.nan)


def _gauge(name: str, words: str, registry: CollectorRegistry) -> Gauge:
    return Gauge(f"hansa_node_{name}", words, registry=registry)


def metrics_loops(metrics: Callable[[], NodeMetrics], port: int | None) -> Mapping[str, Loop]:
    """Return the loop that serves figures; none where no port is set."""
    if port is None:
        return {}

    async def serve() -> None:
        await metrics().run(port)

    return {"metrics": serve}
