"""The three listeners: people, enrolment, nodes.

Three ports, because gRPC cannot ask for a client certificate without requiring
one: people have none, and who enrols has none yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import grpc
import structlog

from coordinator.api.interceptors import Boundary
from coordinator.ca.files import Keys
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.channels import SERVER_OPTIONS

_log = structlog.get_logger(__name__)

_GRACE_SECONDS: Final = 1.0
_MOST_CALLS: Final = 1000

AddServicer = Callable[[grpc.aio.Server], None]


@dataclass(frozen=True, slots=True)
class Listener:
    """One port: where, how TLS is done, who is admitted, what is served."""

    name: str
    address: str
    credentials: grpc.ServerCredentials
    boundary: Boundary
    services: Sequence[AddServicer]


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


@asynccontextmanager
async def serving(listeners: Sequence[Listener]) -> AsyncIterator[None]:
    """Serve all ``listeners`` or none.

    Raises:
        HansaError: ``CONFIG_INVALID``; an address cannot be bound.
    """
    servers: list[grpc.aio.Server] = []
    try:
        for listener in listeners:
            servers.append(_bound(listener))  # noqa: PERF401 - those bound before a failure must be stopped
        for server, listener in zip(servers, listeners, strict=True):
            await server.start()
            _log.info("listening", listener=listener.name, address=listener.address)
        yield
    finally:
        await asyncio.gather(*(server.stop(_GRACE_SECONDS) for server in servers))


def _bound(listener: Listener) -> grpc.aio.Server:
    server = grpc.aio.server(
        interceptors=[listener.boundary], options=list(SERVER_OPTIONS), maximum_concurrent_rpcs=_MOST_CALLS
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
