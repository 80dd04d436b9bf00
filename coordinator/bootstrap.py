"""The composition root: the only place where the coordinator's parts are made and joined."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy.orm import Session

from coordinator.api.admin import AdminServicer, Inviting
from coordinator.api.calls import Calls
from coordinator.api.catalogue import CatalogueServicer
from coordinator.api.enrolment import EnrolmentServicer, Welcome
from coordinator.api.frames import command_bytes
from coordinator.api.guard import Guard, guest, node_authenticator, people_authenticator
from coordinator.api.interceptors import Boundary
from coordinator.api.jobs import JobServicer
from coordinator.api.nodes import NodeServicer
from coordinator.api.rates import RateLimiter
from coordinator.api.trust import TrustServicer
from coordinator.ca.files import Keys, load_keys
from coordinator.config import CA_FOLDER, Config, load_config
from coordinator.domain.authorisation import PEOPLE, Outsider
from coordinator.server import Listener, mutual_credentials, server_credentials, serving
from coordinator.services.deadlines import keep_deadlines
from coordinator.services.desk import Desk
from coordinator.services.enrolment import Issuer
from coordinator.services.evidence import LogEvidence
from coordinator.services.log_evidence import log_evidence
from coordinator.services.proposals import expire_proposals
from coordinator.services.purging import purge_results
from coordinator.services.sessions import Sessions
from coordinator.services.trust import keep_fresh, state_in_force
from coordinator.services.witnessing import LogKeeper
from coordinator.store.database import Database
from coordinator.store.federation import read_federation
from coordinator.store.outboxes import CommandRepository
from coordinator.store.requests import forget_requests
from coordinator.store.schema import is_current
from coordinator.trust_keys import TrustKeys, load_trust_keys
from hansa.contract.errors import HansaError, Reason
from hansa.contract.retention import KEPT_AFTER_ACK
from hansa.runtime.clock import Clock
from hansa.runtime.space import Space
from hansa.runtime.supervisor import run_all
from hansa.v1.admin_service_pb2_grpc import add_AdminServiceServicer_to_server
from hansa.v1.catalogue_service_pb2_grpc import add_CatalogueServiceServicer_to_server
from hansa.v1.enrolment_service_pb2_grpc import add_EnrolmentServiceServicer_to_server
from hansa.v1.job_service_pb2_grpc import add_JobServiceServicer_to_server
from hansa.v1.node_service_pb2_grpc import add_NodeServiceServicer_to_server
from hansa.v1.trust_service_pb2_grpc import add_TrustServiceServicer_to_server

_log = structlog.get_logger(__name__)

_REQUESTS_KEPT: Final = timedelta(days=7)
_HOUSEKEEPING_SECONDS: Final = 3600.0
_NONCE_BYTES: Final = 32

Loop = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Foundation:
    """What every part stands on."""

    config: Config
    keys: Keys
    trust_keys: TrustKeys
    database: Database
    clock: Clock
    space: Space

    @property
    def issuer(self) -> Issuer:
        """What certificates of nodes are made with."""
        return Issuer(self.keys.node_ca, self.config.federation, self.config.node_certificate_life)

    @property
    def keeper(self) -> LogKeeper:
        """What the audit log's checkpoints are made with."""
        return LogKeeper(self.config.federation, self.trust_keys.log)


def open_foundation(state_dir: Path, clock: Clock) -> Foundation:
    """Return the coordinator's parts that ``state_dir`` has; the caller closes the database.

    Raises:
        HansaError: ``STATE_FOLDER_INVALID``, there is no coordinator, its
            store is another one's or of another release; ``CONFIG_INVALID``.
    """
    config = load_config(state_dir)
    space = config.space(state_dir)
    # First: on a full disk, all that follows needs the room of the reserve.
    space.begin()
    keys = load_keys(state_dir / CA_FOLDER, names=config.server_names, now=clock())
    trust_keys = load_trust_keys(state_dir)
    database = Database.open(config.database_url(state_dir))
    database.when_full(space.make_room)
    try:
        _check_store(database, config, state_dir)
    except BaseException:
        database.close()
        raise
    return Foundation(config, keys, trust_keys, database, clock, space)


def _check_store(database: Database, config: Config, state_dir: Path) -> None:
    if not is_current(database):
        raise HansaError(
            Reason.STATE_FOLDER_INVALID,
            f"The store's schema is of another release; run `hansa-coordinator migrate {state_dir}`.",
        )
    federation = database.run_sync(read_federation)
    if federation is None or federation.name != config.federation:
        raise HansaError(Reason.STATE_FOLDER_INVALID, "The store is not this federation's.", field="database")
    database.run_sync(state_in_force)
    database.claim()


async def run_coordinator(foundation: Foundation, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        HansaError: ``CONFIG_INVALID``; an address cannot be bound.
    """
    desk = Desk(foundation.database, foundation.clock, command_bytes)
    sessions = Sessions(desk, partial(secrets.token_bytes, _NONCE_BYTES), keeper=foundation.keeper)
    await sessions.begin()
    async with serving(_listeners(foundation, sessions)):
        try:
            await run_all(_loops(foundation, desk), stop)
        finally:
            # Before the servers stop: a session's end must still reach its node.
            await sessions.close()
    await desk.settled()


def _listeners(base: Foundation, sessions: Sessions) -> tuple[Listener, ...]:
    rates = RateLimiter(time.monotonic)
    return (_people(base, sessions, rates), _enrolment(base, rates), _nodes(base, sessions, rates))


def _people(base: Foundation, sessions: Sessions, rates: RateLimiter) -> Listener:
    config = base.config
    person = people_authenticator(base.database, config.federation, base.clock)
    calls = Calls(base.database, base.clock)
    inviting = Inviting(base.keys.invitation_key, config.endpoint(config.enrolment_port))
    duty = base.trust_keys.duty(config.federation)
    return Listener(
        "people",
        config.address(config.people_port),
        server_credentials(base.keys),
        Boundary(Guard(dict.fromkeys(PEOPLE, person), rates)),
        [
            partial(add_JobServiceServicer_to_server, JobServicer(sessions.desk, _logs(base.keeper), base.space)),
            partial(add_CatalogueServiceServicer_to_server, CatalogueServicer(calls, base.clock)),
            partial(add_TrustServiceServicer_to_server, TrustServicer(calls)),
            partial(
                add_AdminServiceServicer_to_server,
                AdminServicer(sessions.desk, inviting, duty, base.keeper, sessions.cut),
            ),
        ],
    )


def _logs(keeper: LogKeeper) -> LogEvidence:
    return lambda session, job_id, now: log_evidence(session, keeper, job_id, now)


def _enrolment(base: Foundation, rates: RateLimiter) -> Listener:
    config = base.config
    welcome = Welcome(base.keys.server_ca.certificate_pem.decode(), config.endpoint(config.node_port))
    servicer = EnrolmentServicer(base.database, base.clock, base.issuer, welcome)
    return Listener(
        "enrolment",
        config.address(config.enrolment_port),
        server_credentials(base.keys),
        Boundary(Guard({Outsider.GUEST: guest}, rates)),
        [partial(add_EnrolmentServiceServicer_to_server, servicer)],
    )


def _nodes(base: Foundation, sessions: Sessions, rates: RateLimiter) -> Listener:
    config = base.config
    node = node_authenticator(base.database, config.federation, base.clock)
    return Listener(
        "node",
        config.address(config.node_port),
        mutual_credentials(base.keys),
        Boundary(Guard({Outsider.NODE: node}, rates)),
        [
            partial(add_NodeServiceServicer_to_server, NodeServicer(sessions, base.issuer)),
            partial(add_TrustServiceServicer_to_server, TrustServicer(Calls(base.database, base.clock))),
        ],
    )


def _loops(base: Foundation, desk: Desk) -> Mapping[str, Loop]:
    def tidy(session: Session) -> None:
        forget_requests(session, before=base.clock() - _REQUESTS_KEPT)
        expire_proposals(session, base.clock())
        CommandRepository(session).prune(base.clock() - KEPT_AFTER_ACK)
        if base.config.result_days:
            purge_results(session, base.clock(), kept=timedelta(days=base.config.result_days))

    async def housekeeping() -> None:
        while True:
            try:
                await base.database.run(tidy)
            except HansaError as error:
                # A full disk is no reason to stop serving.
                _log.warning("housekeeping_put_off", reason=error.reason.value)
                if error.reason is not Reason.STORE_FULL:
                    raise
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)

    return {
        "housekeeping": housekeeping,
        "space": base.space.run,
        "deadlines": partial(keep_deadlines, desk),
        "trust": partial(keep_fresh, desk, base.trust_keys.online),
    }
