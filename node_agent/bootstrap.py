"""The composition root of the agent: the only place where its parts are made."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import uuid4

import structlog
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hansa.contract.raw_keys import signing_key
from hansa.runtime.clock import utc_now
from hansa.runtime.drain import DrainFile
from hansa.runtime.logging import set_up_logging
from hansa.runtime.space import Space
from hansa.runtime.stopping import stop_on_signals
from hansa.runtime.supervisor import run_all
from node_agent.airlock.gate import Airlock, Gate
from node_agent.airlock.statements import Notary
from node_agent.approval_records import approvals_of
from node_agent.approvals import Approvals
from node_agent.audit.trail import AuditTrail
from node_agent.audit.witness import LogWitness, WitnessKeys
from node_agent.backups import Backups
from node_agent.catalogue import Catalogue, approved_digests
from node_agent.config import AgentConfig, StateFolder, load_config, lock_state_folder, short_path
from node_agent.datasets import Datasets
from node_agent.durable import sweep_parts
from node_agent.execution.broker import EmbeddedBroker, broker_url
from node_agent.execution.celery_app import enqueue_run, make_app, reach_broker, waiting_runs
from node_agent.execution.presence import Premises
from node_agent.executions import Executions
from node_agent.keys.credential import load_credential
from node_agent.keys.identity import load_identity
from node_agent.keys.signing import KeySigner
from node_agent.leftovers import Leftovers
from node_agent.link.clock_watch import ClockWatch
from node_agent.link.commands import Commands, Wishes
from node_agent.link.daemon import Link, LinkState, Standing
from node_agent.link.encoding import WireReporter
from node_agent.link.renewal import Renewal
from node_agent.link.session import SessionParts
from node_agent.local_api.server import LocalApi
from node_agent.local_api.views import Views
from node_agent.metrics import Looked, NodeMetrics, metrics_loops
from node_agent.offers import Offers, active_runs
from node_agent.policy.approvals import Site
from node_agent.policy.book import PolicyBook
from node_agent.policy.changes import PolicyChanges
from node_agent.reporting import Acknowledged, Bells
from node_agent.retention import Backlog, Retention
from node_agent.scheduling import RunQueue, Scheduler
from node_agent.situation import Situation
from node_agent.spool.uploader import Uploader
from node_agent.store.database import Database
from node_agent.store.outbox import found_store
from node_agent.trust.book import TrustBook
from node_agent.trust.keeper import TrustKeeper

_log = structlog.get_logger(__name__)

# Each worker's slot has one call or two under way; beyond, uvicorn answers 503, and workers come again.
_MOST_LOCAL_CALLS: Final = 512


def serve(state: StateFolder) -> int:
    """Run the agent on ``state`` until it is told to stop; return the exit status.

    Raises:
        HansaError: ``AGENT_RUNNING``, ``CONFIG_INVALID``, ``POLICY_INVALID``;
            nothing was started.
    """
    set_up_logging("agent")
    with lock_state_folder(state):
        _sweep(state)
        config = load_config(state)
        set_up_logging("agent", node=config.node)
        policy = PolicyBook(state.policy_file)
        space = Space(state.path, config.margins)
        space.begin()
        database = Database.open(state.database)
        database.when_full(space.make_room)
        try:
            asyncio.run(_serve(state, config, policy, database, space))
        finally:
            database.close()
    return 0


def _sweep(state: StateFolder) -> None:
    """Remove the files that a killed agent, or a killed enrolment, was writing: they may hold keys."""
    swept = sum(sweep_parts(folder) for folder in (state.keys, state.trust))
    for part in state.path.glob(".*.part"):
        part.unlink()
        swept += 1
    if swept:
        _log.warning("half_written_files_removed", count=swept)


async def _serve(state: StateFolder, config: AgentConfig, policy: PolicyBook, database: Database, space: Space) -> None:
    stop = stop_on_signals("agent", timedelta(seconds=config.stop_seconds))
    await database.run(lambda session: found_store(session, str(uuid4())))
    async with AsyncExitStack() as stack:
        if config.broker_url is None:
            broker = EmbeddedBroker(state.broker)
            await broker.start()
            stack.push_async_callback(broker.stop)
        app = make_app(broker_url(state.path, config.broker_url))
        queue = RunQueue(partial(enqueue_run, app), partial(waiting_runs, app))
        agent = Agent(state, config, policy, database, queue, space=space)
        agent.reach_broker = partial(reach_broker, app)
        await agent.run(stop)
    _log.info("agent_stopped")


def _no_broker() -> None:
    raise ConnectionError("the agent has no broker")


class Agent:
    """All parts of one agent, built and wired."""

    def __init__(  # noqa: PLR0913 - what the parts stand on
        self,
        state: StateFolder,
        config: AgentConfig,
        policy: PolicyBook,
        database: Database,
        queue: RunQueue,
        *,
        space: Space | None = None,
    ) -> None:
        """Build the parts; nothing runs before ``run``. Without ``space``, nobody watches the disk."""
        self._space = space or Space(None, config.margins)
        self._state, self._config, self._policy, self._database = state, config, policy, database
        # Asks the broker for a sign of life; for the metrics.
        self.reach_broker: Callable[[], object] = _no_broker
        self._bells = Bells()
        self._acknowledged = Acknowledged()
        self._backlog = Backlog(database=database, acknowledged=self._acknowledged)
        self._reporter = WireReporter(config.node)
        self._trust = TrustBook()
        self._analyses = Catalogue(state.analyses, self._trust.current)
        self._keeper = TrustKeeper(
            folder=state.trust, book=self._trust, catalogue=self._analyses, database=database, clock=utc_now
        )
        self._identity = load_identity(state)
        self._witness = LogWitness(
            database=database,
            keys=WitnessKeys(
                federation=config.federation,
                node=config.node,
                own=self._identity.signing,
                coordinator=self._coordinator_log_key,
                report=self._reporter.release_logged,
            ),
            clock=utc_now,
        )
        self._watch = ClockWatch()
        self._wishes, self._drain = Wishes(), DrainFile(state.path)
        self._situation = Situation(
            site=Site(config.federation, config.node),
            analyses=self._analyses,
            policy=policy.current,
            trust=self._trust.current,
            keys=self._identity.public,
            draining=lambda: self._wishes.draining,
            alarm=self._witness.alarm,
            clock_wrong=self._watch.is_wrong,
        )
        self._offers = Offers(situation=self._situation, reporter=self._reporter)
        self._standing = Standing()
        self._datasets = Datasets(
            database=database, state=state, reporter=self._reporter, bells=self._bells, clock=utc_now
        )
        premises = Premises(state.path)
        self._scheduler = self._make_scheduler(queue, premises)
        self._leftovers = Leftovers(database=database, premises=premises)
        self._retention = Retention(
            database=database,
            state=state,
            policy=policy.current,
            clock=utc_now,
            acknowledged=self._acknowledged,
        )
        self._policy_changes = PolicyChanges(book=policy, database=database, clock=utc_now)
        self._link = self._make_link()

    def _make_scheduler(self, queue: RunQueue, premises: Premises) -> Scheduler:
        return Scheduler(
            database=self._database,
            policy=self._policy.current,
            reporter=self._reporter,
            bells=self._bells,
            clock=utc_now,
            queue=queue,
            may_start=self._may_start,
            premises=premises,
        )

    def _make_link(self) -> Link:
        parts = SessionParts(
            database=self._database,
            commands=Commands(self._offers, self._reporter),
            trust=self._keeper,
            wishes=self._wishes,
            bells=self._bells,
            reporter=self._reporter,
            clock=utc_now,
            instance_id=str(uuid4()),
            policy_digest=lambda: self._policy.digest().encode(),
            load=self._load,
            witness=self._witness,
            has_room=self._has_room,
            conditions=self._conditions,
            watch=self._watch,
            acknowledged=self._acknowledged,
        )
        return Link(
            endpoint=self._config.node_endpoint,
            state=self._state,
            parts=parts,
            uploader=Uploader(database=self._database, bells=self._bells, clock=utc_now),
            renewal=Renewal(state=self._state, clock=utc_now),
            clock=utc_now,
            draw=random.random,
            standing=self._standing,
        )

    def _coordinator_log_key(self) -> Ed25519PublicKey | None:
        """Return what the coordinator signs its checkpoints with; None before there is a directory."""
        view = self._trust.current()
        return None if view is None else signing_key(view.directory.coordinator_log_key)

    def _has_room(self) -> bool:
        """Say whether new work may be taken on."""
        return not self._space.short and not self._backlog.is_full

    def _may_start(self) -> bool:
        """Say whether a run that has not begun may: there is room, and the operator does not drain the node."""
        return self._has_room() and not self._drain.is_set()

    def _conditions(self) -> list[str]:
        draining = self._wishes.draining or self._drain.is_set()
        return [*(["DRAINING"] if draining else []), *([] if self._has_room() else ["DEGRADED"])]

    async def _load(self) -> tuple[int, int]:
        active = await self._database.run(active_runs)
        most = self._policy.current().admission.max_active_runs if self._may_start() else 0
        return max(most - active, 0), active

    def _api(self) -> LocalApi:
        gate = Gate(
            analyses=self._analyses,
            policy=self._policy.current,
            reporter=self._reporter,
            notary=Notary(
                node=self._config.node,
                signer=KeySigner(self._config.node, self._identity.signing),
                trust=self._trust.current,
                policy_digest=self._policy.digest,
                approvals_of=approvals_of,
            ),
            refusal=self._situation.refusal,
        )
        executions = Executions(
            database=self._database,
            state=self._state,
            analyses=self._analyses,
            gate=gate,
            situation=self._situation,
            reporter=self._reporter,
            bells=self._bells,
            clock=utc_now,
        )
        views = Views(
            node=self._config.node,
            federation=self._config.federation,
            state=self._state,
            database=self._database,
            link=self._standing_json,
            policy_digest=self._policy.digest,
            logs=self._witness.standing,
            trust=self._trust_json,
            disk=self._space.standing,
            unsent_bytes=lambda: self._backlog.unsent,
        )
        airlock = Airlock(database=self._database, gate=gate, bells=self._bells, clock=utc_now)
        return LocalApi(
            executions=executions,
            datasets=self._datasets,
            airlock=airlock,
            policy=self._policy_changes,
            audit=AuditTrail(database=self._database, witness=self._witness, clock=utc_now),
            approvals=Approvals(
                database=self._database,
                situation=self._situation,
                offers=self._offers,
                bells=self._bells,
                clock=utc_now,
            ),
            backups=Backups(state=self._state, clock=utc_now),
            views=views,
        )

    def _trust_json(self) -> dict[str, Any]:
        return {
            **self._trust.standing(),
            "listed": self._situation.is_listed(),
            "analyses": approved_digests(self._analyses),
        }

    def _standing_json(self) -> dict[str, Any]:
        since = self._standing.since
        return {
            "state": self._standing.state.value,
            "reason": self._standing.reason,
            "since": since.isoformat() if since else None,
            "clock_ahead_seconds": self._watch.ahead_seconds,
            "certificate_expires": self._certificate_end().isoformat(),
        }

    def _certificate_end(self) -> datetime:
        return load_credential(self._state).certificate.not_valid_after_utc

    def _metrics(self) -> NodeMetrics:
        looked = Looked(
            folder=self._state.path,
            clock=utc_now,
            acked=lambda: self._acknowledged.upto,
            online=lambda: self._standing.state is LinkState.ONLINE,
            clock_ahead=lambda: self._watch.ahead_seconds,
            certificate_end=self._certificate_end,
            reach_broker=self.reach_broker,
        )
        return NodeMetrics(self._database, looked)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set.

        Raises:
            Exception: what the first failing part raised.
        """
        await self._datasets.sweep()
        await self._policy_changes.begin()
        await self._keeper.load()
        await self._witness.begin()
        _log.info("agent_started", analyses=sorted(self._analyses))
        await run_all(
            {
                "link": self._link.run,
                "scheduler": self._scheduler.run,
                "leftovers": self._leftovers.run,
                "local_api": self._serve_api,
                "retention": self._retention.run,
                "space": self._space.run,
                **metrics_loops(self._metrics, self._config.metrics_port),
                "backlog": self._backlog.run,
            },
            stop,
        )

    async def _serve_api(self) -> None:
        self._state.socket.unlink(missing_ok=True)
        with short_path(self._state.socket) as name, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(name)
            self._state.socket.chmod(0o600)
            config = uvicorn.Config(
                self._api().app(),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                limit_concurrency=_MOST_LOCAL_CALLS,
                timeout_graceful_shutdown=self._config.stop_seconds * 2 // 3,
            )
            server = _Server(config)
            serving = asyncio.ensure_future(server.serve(sockets=[listener]))
            try:
                await asyncio.shield(serving)
            except asyncio.CancelledError:
                # A worker's report is not cut in two: open calls end, new ones find nobody.
                server.should_exit = True
                await serving
                raise
            finally:
                # Cancelled, uvicorn leaves its listeners with the loop.
                for one in getattr(server, "servers", ()):
                    one.close()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: the supervisor owns the signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the handlers as they are."""
        yield
