"""The client of the services that people may call, with typed methods."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from hansa.runtime.clock import Clock, utc_now
from hansa.sdk.administration import AdminClient
from hansa.sdk.audit import AuditClient
from hansa.sdk.catalogue import CatalogueClient
from hansa.sdk.connection import CONNECT_SECONDS, open_connection
from hansa.sdk.jobs import JobsClient
from hansa.sdk.patience import OnWait, no_word
from hansa.sdk.profile import Profile
from hansa.sdk.trust import TrustReader


@dataclass(frozen=True, slots=True)
class Client:
    """A connected person. Good for as long as ``connect``'s block lasts."""

    profile: Profile
    jobs: JobsClient
    catalogue: CatalogueClient
    admin: AdminClient
    audit: AuditClient
    trust: TrustReader


@asynccontextmanager
async def connect(
    profile: Profile, *, clock: Clock = utc_now, connect_seconds: float = CONNECT_SECONDS, on_wait: OnWait = no_word
) -> AsyncIterator[Client]:
    """Yield a client of the coordinator that ``profile`` names.

    ``on_wait`` is told whenever a call was refused with the request to come
    again, and waits for that.

    Raises:
        HansaError: ``KEY_INVALID`` or ``CONFIG_INVALID`` before any contact.
        RemoteError: ``COORDINATOR_UNREACHABLE``.
    """
    opening = open_connection(profile, clock=clock, connect_seconds=connect_seconds, on_wait=on_wait)
    async with opening as connection:
        yield Client(
            profile,
            JobsClient(connection),
            CatalogueClient(connection),
            AdminClient(connection),
            AuditClient(connection),
            TrustReader(connection),
        )
