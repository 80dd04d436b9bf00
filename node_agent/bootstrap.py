"""The composition root of the agent: the only place where its parts are made."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import structlog
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hansa.contract.raw_keys import signing_key
from hansa.runtime.clock import utc_now
from hansa.runtime.logging import set_up_logging
from hansa.runtime.space import Space
from hansa.runtime.supervisor import run_all, stop_on_signals
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
from node_agent.execution.broker import EmbeddedBroker, broker_url
from node_agent.execution.celery_app import enqueue_run, make_app
from node_agent.executions import Executions
from node_agent.keys.identity import load_identity
from node_agent.keys.signing import KeySigner
from node_agent.link.commands import Commands, Wishes
from node_agent.link.daemon import Link, Standing
from node_agent.link.encoding import WireReporter
from node_agent.link.renewal import Renewal
from node_agent.link.session import SessionParts
from node_agent.local_api.server import LocalApi
from node_agent.local_api.views import Views
from node_agent.offers import Offers, active_runs
from node_agent.policy.approvals import Site
from node_agent.policy.book import PolicyBook
from node_agent.policy.changes import PolicyChanges
from node_agent.reporting import Acknowledged, Bells
from node_agent.retention import Backlog, Retention
from node_agent.scheduling import Scheduler
from node_agent.situation import Situation
from node_agent.spool.uploader import Uploader
from node_agent.store.database import Database
from node_agent.store.outbox import found_store
from node_agent.trust.book import TrustBook
from node_agent.trust.keeper import TrustKeeper

_log = structlog.get_logger(__name__)


def serve(state: StateFolder) -> int:
    """Run the agent on ``state`` until it is told to stop; return the exit status.

    Raises:
        HansaError: ``AGENT_RUNNING``, ``CONFIG_INVALID``, ``POLICY_INVALID``;
            nothing was started.
    """
    set_up_logging("agent")
    with lock_state_folder(state):
        config = load_config(state)
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


async def _serve(state: StateFolder, config: AgentConfig, policy: PolicyBook, database: Database, space: Space) -> None:
    stop = stop_on_signals()
    await database.run(lambda session: found_store(session, str(uuid4())))
    async with AsyncExitStack() as stack:
        if config.broker_url is None:
            broker = EmbeddedBroker(state.broker)
            await broker.start()
            stack.push_async_callback(broker.stop)
        app = make_app(broker_url(state.path, config.broker_url))
        agent = Agent(state, config, policy, database, partial(enqueue_run, app), space=space)
        await agent.run(stop)
    _log.info("agent_stopped")


class Agent:
    """All parts of one agent, built and wired."""

    def __init__(  # noqa: PLR0913 - what the parts stand on
        self,
        state: StateFolder,
        config: AgentConfig,
        policy: PolicyBook,
        database: Database,
        enqueue: Callable[[str], None],
        *,
        space: Space | None = None,
    ) -> None:
        """Build the parts; nothing runs before ``run``. Without ``space``, nobody watches the disk."""
        self._space = space or Space(None, config.margins)
        self._state, self._config, self._policy, self._database = state, config, policy, database
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
        self._wishes = Wishes()
        self._situation = Situation(
            site=Site(config.federation, config.node),
            analyses=self._analyses,
            policy=policy.current,
            trust=self._trust.current,
            keys=self._identity.public,
            draining=lambda: self._wishes.draining,
            alarm=self._witness.alarm,
        )
        self._offers = Offers(situation=self._situation, reporter=self._reporter)
        self._standing = Standing()
        self._datasets = Datasets(
            database=database, state=state, reporter=self._reporter, bells=self._bells, clock=utc_now
        )
        self._scheduler = Scheduler(
            database=database,
            policy=policy.current,
            reporter=self._reporter,
            bells=self._bells,
            clock=utc_now,
            enqueue=enqueue,
            may_start=self._has_room,
        )
        self._retention = Retention(
            database=database,
            state=state,
            policy=policy.current,
            clock=utc_now,
            acknowledged=self._acknowledged,
        )
        self._policy_changes = PolicyChanges(book=policy, database=database, clock=utc_now)
        self._link = self._make_link()

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

    async def _load(self) -> tuple[int, int]:
        active = await self._database.run(active_runs)
        if not self._has_room():
            return 0, active
        return max(self._policy.current().admission.max_active_runs - active, 0), active

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
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set.

        Raises:
            Exception: what the first failing part raised.
        """
        await self._datasets.sweep()
        await self._policy_changes.begin()
        await self._keeper.load()
        await self._witness.begin()
        _log.info("agent_started", node=self._config.node, analyses=sorted(self._analyses))
        await run_all(
            {
                "link": self._link.run,
                "scheduler": self._scheduler.run,
                "local_api": self._serve_api,
                "retention": self._retention.run,
                "space": self._space.run,
                "backlog": self._backlog.run,
            },
            stop,
        )

    async def _serve_api(self) -> None:
        self._state.socket.unlink(missing_ok=True)
        with short_path(self._state.socket) as name, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(name)
            self._state.socket.chmod(0o600)
            config = uvicorn.Config(self._api().app(), log_config=None, access_log=False, lifespan="off", ws="none")
            server = _Server(config)
            try:
                await server.serve(sockets=[listener])
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
