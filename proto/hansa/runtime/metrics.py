"""Figures for an operator's own monitoring: Prometheus text, on this machine alone.

Operational counters can tell what released statistics hide, so they stay where
they arise: the page is served on loopback, and no label holds a person, a
dataset or free text. What happened is counted from the log's own events, so
that the two never disagree.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any, Final, TypeAlias, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from hansa.contract.errors import HansaError, Reason
from hansa.runtime.clock import Clock
from hansa.runtime.logging import Event, listening
from hansa.runtime.supervisor import until_first_ends

_log = structlog.get_logger(__name__)

LOOPBACK: Final = "127.0.0.1"
# A browser on this machine that is lured to a name which points here must not read the page.
_OUR_NAMES: Final = frozenset({LOOPBACK, "localhost"})
_PATIENCE_SECONDS: Final = 5
_LAG_STEP_SECONDS: Final = 0.5
_READ_SECONDS: Final = 5.0
_OTHER: Final = "OTHER"

Rule: TypeAlias = Callable[[Event], None]
Rules: TypeAlias = Mapping[str, Sequence[Rule]]

_SHORT_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG_SECONDS: Final = (0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 900, 3600, 86_400)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing: who scrapes is of no interest, and the log is for events."""


@asynccontextmanager
async def serving_metrics(registry: CollectorRegistry, port: int) -> AsyncIterator[None]:
    """Serve ``registry`` on ``port`` of loopback until the context ends.

    Raises:
        HansaError: ``CONFIG_INVALID``; the port cannot be used.
    """
    try:
        server = make_server(LOOPBACK, port, _only_for_us(make_wsgi_app(registry)), _Server, _Handler)
    except OSError as error:
        words = f"Metrics cannot be served on {LOOPBACK}:{port}; does something else listen there?"
        raise HansaError(Reason.CONFIG_INVALID, words, field="metrics_port") from error
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join()


def _only_for_us(page: Any) -> Any:
    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        name = str(environ.get("HTTP_HOST", "")).rpartition(":")[0] or str(environ.get("HTTP_HOST", ""))
        if name not in _OUR_NAMES or environ.get("REQUEST_METHOD") != "GET":
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"This page is for this machine.\n"]
        return cast("Iterable[bytes]", page(environ, start_response))

    return app


@dataclass(frozen=True, slots=True)
class Counted:
    """How an event of the log is counted: by the value of one field where ``label`` names one.

    A value that is not ``known`` is counted as ``OTHER``: only enumerated words become labels.
    """

    counter: Counter
    label: str = ""
    known: frozenset[str] = frozenset()

    def take(self, event: Event) -> None:
        """Count ``event``."""
        if not self.label:
            self.counter.inc()
            return
        value = str(event.get(self.label, ""))
        self.counter.labels(value if value in self.known else _OTHER).inc()


class Absences:
    """Measures how long something was away, by the events that say that it went and that it came back."""

    def __init__(self, histogram: Histogram, clock: Callable[[], float] = time.monotonic) -> None:
        """Take where lengths go, and a clock that does not jump."""
        self._histogram, self._clock = histogram, clock
        self._since: dict[str, float] = {}

    def went(self, who: str) -> None:
        """Note that ``who`` is away; what was away already stays so."""
        self._since.setdefault(who, self._clock())

    def came(self, who: str) -> None:
        """Observe how long ``who`` was away, if that is known."""
        since = self._since.pop(who, None)
        if since is not None:
            self._histogram.observe(self._clock() - since)


@contextmanager
def counting(rules: Rules) -> Iterator[None]:
    """Hand each event of the log that has ``rules`` to them, by its name, until the context ends."""

    def hear(event: Event) -> None:
        for rule in rules.get(str(event.get("event")), ()):
            rule(event)

    with listening(hear):
        yield


@contextmanager
def timing_transactions(orm_events: Any, session_class: type, histogram: Histogram) -> Iterator[None]:
    """Observe how long each transaction takes from its begin to the end of its commit or rollback.

    Args:
        orm_events: SQLAlchemy's module ``event``.
        session_class: its ``Session``.
        histogram: labelled with the outcome.
    """
    key = "hansa_begun"

    def begun(session: Any, *_: object) -> None:
        session.info.setdefault(key, time.monotonic())

    def ended(outcome: str) -> Callable[[Any], None]:
        def observe(session: Any) -> None:
            start = session.info.pop(key, None)
            if start is not None:
                histogram.labels(outcome).observe(time.monotonic() - start)

        return observe

    hooks = (("after_begin", begun), ("after_commit", ended("committed")), ("after_rollback", ended("rolled_back")))
    for name, hook in hooks:
        orm_events.listen(session_class, name, hook)
    try:
        yield
    finally:
        for name, hook in hooks:
            orm_events.remove(session_class, name, hook)


async def _measure_lag(histogram: Histogram) -> None:
    """Observe for ever by how much the event loop is late."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_STEP_SECONDS
        await asyncio.sleep(_LAG_STEP_SECONDS)
        histogram.observe(max(loop.time() - due, 0.0))


@dataclass(frozen=True, slots=True)
class Orm:
    """SQLAlchemy's module ``event`` and its ``Session``, which this package does not know."""

    events: Any
    session_class: type


class Board:
    """The figures that every daemon has, and the making of its own; all under ``prefix``."""

    def __init__(self, prefix: str, *, folder: Path, clock: Clock) -> None:
        """Take the first part of all names, the folder whose disk is looked at, and the time."""
        self._prefix, self._folder, self._clock = prefix, folder, clock
        self.registry = CollectorRegistry()
        self._disk = self.gauge("disk_free_bytes", "Free on the state folder's disk.")
        self._read = self.gauge("figures_timestamp_seconds", "When these were read.")
        self._lag = self._histogram("loop_lag_seconds", "By how much the event loop was late.", _SHORT_SECONDS)
        self._transactions = self._histogram("transaction_seconds", "Store.", _SHORT_SECONDS, "outcome")

    def gauge(self, name: str, words: str, *labels: str) -> Gauge:
        """Return a new gauge."""
        return Gauge(f"{self._prefix}_{name}", words, labels, registry=self.registry)

    def absences(self, words: str) -> Absences:
        """Return what measures how long the other side was away."""
        return Absences(self._histogram("reattach_seconds", words, _LONG_SECONDS))

    def count(self, name: str, words: str, label: str = "", known: frozenset[str] = frozenset()) -> Rule:
        """Return a rule that counts events, by an enumerated field where ``label`` names one."""
        counter = Counter(f"{self._prefix}_{name}", words, [label] if label else [], registry=self.registry)
        return Counted(counter, label, known).take

    def _histogram(self, name: str, words: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"{self._prefix}_{name}", words, labels, buckets=buckets, registry=self.registry)

    async def run(self, port: int, rules: Rules, read: Callable[[], Awaitable[None]], orm: Orm) -> None:
        """Serve the figures on ``port`` of loopback, count by ``rules`` and ``read`` every 5 seconds, for ever.

        Raises:
            HansaError: ``CONFIG_INVALID``; the port cannot be used.
        """
        timing = timing_transactions(orm.events, orm.session_class, self._transactions)
        with counting(rules), timing:
            async with serving_metrics(self.registry, port):
                _log.info("metrics_served", port=port)
                await until_first_ends(self._keep(read), _measure_lag(self._lag))

    async def _keep(self, read: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await read()
                self._disk.set(shutil.disk_usage(self._folder).free)
                self._read.set(self._clock().timestamp())
            except Exception:
                # A store that cannot be read now is the operator's to see: by this, and by the time that stands still.
                _log.exception("figures_not_read")
            await asyncio.sleep(_READ_SECONDS)
