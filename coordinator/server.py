"""The three listeners: people, enrolment, nodes.

Three ports, because gRPC cannot ask for a client certificate without requiring
one: people have none, and who enrols has none yet.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import grpc
import structlog

from coordinator.api.interceptors import Boundary
from coordinator.ca.files import Keys
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.channels import SERVER_OPTIONS, SHORT_CONNECTION_OPTIONS

_log = structlog.get_logger(__name__)

# Three listeners with all the connections that they take, and room for the store.
_MOST_FILES: Final = 16_384

AddServicer = Callable[[grpc.aio.Server], None]


@dataclass(frozen=True, slots=True)
class Listener:
    """One port: where, how TLS is done, who is admitted, what is served, and for how long."""

    name: str
    address: str
    credentials: grpc.ServerCredentials
    boundary: Boundary
    services: Sequence[AddServicer]
    # Whether its connections stay for weeks; others end when they are old or idle.
    lasting: bool = False


def server_credentials(keys: Keys) -> grpc.ServerCredentials:
    """Return TLS that proves the server only."""
    return grpc.ssl_server_credentials([(keys.server_key_pem, keys.server_chain_pem)])


def mutual_credentials(keys: Keys) -> grpc.ServerCredentials:
    """Return TLS that proves both; the node CA is the only root for clients."""
    return grpc.ssl_server_credentials(
        [(keys.server_key_pem, keys.server_chain_pem)],
        root_certificates=keys.node_ca.certificate_pem,
        require_client_auth=True,
    )


def allow_many_files() -> None:
    """Let this process have as many connections as its listeners take, if the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@dataclass(frozen=True, slots=True)
class Servers:
    """What serves; ``grace`` is how long open calls may still take once it stops."""

    grace: timedelta
    running: list[grpc.aio.Server] = field(default_factory=list)

    async def stop(self) -> None:
        """Take no new calls, and return once the open ones have ended. A repeat changes nothing."""
        await asyncio.gather(*(server.stop(self.grace.total_seconds()) for server in self.running))


@asynccontextmanager
async def serving(listeners: Sequence[Listener], grace: timedelta) -> AsyncIterator[Servers]:
    """Serve all ``listeners`` or none.

    Raises:
        HansaError: ``CONFIG_INVALID``; an address cannot be bound.
    """
    servers = Servers(grace)
    try:
        for listener in listeners:
            servers.running.append(_bound(listener))
        for server, listener in zip(servers.running, listeners, strict=True):
            await server.start()
            _log.info("listening", listener=listener.name, address=listener.address)
        yield servers
    finally:
        await servers.stop()


def _bound(listener: Listener) -> grpc.aio.Server:
    server = grpc.aio.server(
        interceptors=[listener.boundary],
        options=[*SERVER_OPTIONS, *(() if listener.lasting else SHORT_CONNECTION_OPTIONS)],
        # Only for what the boundary has not seen yet: its own refusals come earlier, and say more.
        maximum_concurrent_rpcs=listener.boundary.most_calls * 4,
    )
    for add in listener.services:
        add(server)
    try:
        server.add_secure_port(listener.address, listener.credentials)
    except RuntimeError as error:
        raise HansaError(
            Reason.CONFIG_INVALID,
            f"The {listener.name} listener cannot use {listener.address}; does something else listen there?",
            field=f"{listener.name}_port",
        ) from error
    return server
