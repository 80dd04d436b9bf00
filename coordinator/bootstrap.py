"""The composition root: the only place where the coordinator's parts are made and joined."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from sqlalchemy.orm import Session

from coordinator.api.admin import AdminServicer, Inviting
from coordinator.api.caller import Role
from coordinator.api.calls import Calls
from coordinator.api.catalogue import CatalogueServicer
from coordinator.api.enrolment import EnrolmentServicer, Welcome
from coordinator.api.guard import Guard, guest, node_authenticator, people_authenticator
from coordinator.api.interceptors import Boundary
from coordinator.api.rates import RateLimiter
from coordinator.ca.files import Keys, load_keys
from coordinator.config import CA_FOLDER, Config, load_config
from coordinator.server import Listener, mutual_credentials, server_credentials, serving
from coordinator.services.enrolment import Issuer
from coordinator.store.database import Database
from coordinator.store.federation import read_federation
from coordinator.store.requests import forget_requests
from coordinator.store.schema import is_current
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.clock import Clock
from hansa.runtime.supervisor import run_all
from hansa.v1.admin_service_pb2_grpc import add_AdminServiceServicer_to_server
from hansa.v1.catalogue_service_pb2_grpc import add_CatalogueServiceServicer_to_server
from hansa.v1.enrolment_service_pb2_grpc import add_EnrolmentServiceServicer_to_server

_REQUESTS_KEPT: Final = timedelta(days=7)
_HOUSEKEEPING_SECONDS: Final = 3600.0

Loop = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Foundation:
    """What every part stands on."""

    config: Config
    keys: Keys
    database: Database
    clock: Clock

    @property
    def issuer(self) -> Issuer:
        """What certificates of nodes are made with."""
        return Issuer(self.keys.node_ca, self.config.federation, self.config.node_certificate_life)


def open_foundation(state_dir: Path, clock: Clock) -> Foundation:
    """Return the coordinator's parts that ``state_dir`` has; the caller closes the database.

    Raises:
        HansaError: ``STATE_FOLDER_INVALID``, there is no coordinator, its
            store is another one's or of another release; ``CONFIG_INVALID``.
    """
    config = load_config(state_dir)
    keys = load_keys(state_dir / CA_FOLDER, names=config.server_names, now=clock())
    database = Database.open(config.database_url(state_dir))
    try:
        _check_store(database, config, state_dir)
    except BaseException:
        database.close()
        raise
    return Foundation(config, keys, database, clock)


def _check_store(database: Database, config: Config, state_dir: Path) -> None:
    if not is_current(database):
        raise HansaError(
            Reason.STATE_FOLDER_INVALID,
            f"The store's schema is of another release; run `hansa-coordinator migrate {state_dir}`.",
        )
    federation = database.run_sync(read_federation)
    if federation is None or federation.name != config.federation:
        raise HansaError(Reason.STATE_FOLDER_INVALID, "The store is not this federation's.", field="database")


async def run_coordinator(foundation: Foundation, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        HansaError: ``CONFIG_INVALID``; an address cannot be bound.
    """
    async with serving(_listeners(foundation)):
        await run_all(_loops(foundation), stop)


def _listeners(base: Foundation) -> tuple[Listener, ...]:
    config = base.config
    rates = RateLimiter(time.monotonic)
    people = people_authenticator(base.database, config.federation, base.clock)
    nodes = node_authenticator(base.database, config.federation, base.clock)
    calls = Calls(base.database, base.clock)
    inviting = Inviting(
        base.keys.invitation_key, base.keys.server_ca.fingerprint, config.endpoint(config.enrolment_port)
    )
    admin = AdminServicer(calls, inviting, lambda node: None)
    catalogue = CatalogueServicer(calls, base.clock)
    enrolment = EnrolmentServicer(base.database, base.clock, base.issuer, _welcome(base))
    return (
        Listener(
            "people",
            config.address(config.people_port),
            server_credentials(base.keys),
            Boundary(Guard({Role.RESEARCHER: people, Role.OPERATOR: people}, rates)),
            [
                lambda server: add_AdminServiceServicer_to_server(admin, server),
                lambda server: add_CatalogueServiceServicer_to_server(catalogue, server),
            ],
        ),
        Listener(
            "enrolment",
            config.address(config.enrolment_port),
            server_credentials(base.keys),
            Boundary(Guard({Role.GUEST: guest}, rates)),
            [lambda server: add_EnrolmentServiceServicer_to_server(enrolment, server)],
        ),
        Listener(
            "node",
            config.address(config.node_port),
            mutual_credentials(base.keys),
            Boundary(Guard({Role.NODE: nodes}, rates)),
            [],
        ),
    )


def _welcome(base: Foundation) -> Welcome:
    return Welcome(base.keys.server_ca.certificate_pem.decode(), base.config.endpoint(base.config.node_port))


def _loops(base: Foundation) -> Mapping[str, Loop]:
    def forget(session: Session) -> None:
        forget_requests(session, before=base.clock() - _REQUESTS_KEPT)

    async def housekeeping() -> None:
        while True:
            await base.database.run(forget)
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)

    return {"housekeeping": housekeeping}
