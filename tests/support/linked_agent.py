"""A node's link on a real store and key folder, against a live coordinator."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy.orm import Session as Transaction

from coordinator.domain.membership import CredentialState
from coordinator.store.credentials import CredentialRepository
from hansa.runtime.clock import utc_now
from node_agent.durable import write_durably
from node_agent.keys.credential import SERVER_CA, Credential, load_credential, store_credential
from node_agent.link.daemon import Link, LinkState
from node_agent.link.renewal import Renewal
from node_agent.link.session import SessionParts
from node_agent.spool.uploader import Uploader
from tests.support.agent import Bench
from tests.support.live_coordinator import LiveCoordinator, NodeKey

PATIENCE = 60.0


class Agent:
    """A node's link on a real store and key folder; ``agent`` runs it."""

    def __init__(self, bench: Bench, live: LiveCoordinator, key: NodeKey) -> None:
        self.bench, self.live, self.key, self.state = bench, live, key, bench.state
        write_durably(self.state.keys / SERVER_CA, live.root)
        store_credential(self.state, Credential(key.key_pem, key.certificate_pem.encode()))
        self.first = self.serial
        # How far the node's clock is ahead while it holds its first certificate.
        self.ahead = timedelta()
        # How far its clock is ahead for all else.
        self.skew = timedelta()
        self.link = self._link()

    @property
    def serial(self) -> int:
        """The number of the certificate on disk."""
        return load_credential(self.state).certificate.serial_number

    def clock(self) -> datetime:
        """Return the time at the node."""
        return utc_now() + (self.ahead if self.serial == self.first else timedelta())

    def _link(self) -> Link:
        bench = self.bench

        async def load() -> tuple[int, int]:
            return 1, 0

        parts = SessionParts(
            database=bench.database,
            commands=bench.commands,
            trust=bench.keeper,
            wishes=bench.wishes,
            bells=bench.bells,
            reporter=bench.reporter,
            clock=lambda: utc_now() + self.skew,
            instance_id=str(uuid4()),
            policy_digest=lambda: b"",
            load=load,
        )
        return Link(
            endpoint=self.live.address("node"),
            state=self.state,
            parts=parts,
            uploader=Uploader(database=bench.database, bells=bench.bells, clock=utc_now),
            renewal=Renewal(state=self.state, clock=self.clock, draw=lambda: 0.0),
            clock=utc_now,
            draw=random.random,
        )

    @property
    def is_online(self) -> bool:
        """Whether the link says it is connected."""
        return self.link.standing.state is LinkState.ONLINE

    async def credential(self, serial: int) -> CredentialState:
        """Return how the coordinator holds a certificate."""

        def read(session: Transaction) -> CredentialState:
            found = CredentialRepository(session).get(f"{serial:040x}")
            assert found is not None
            return found.state

        return await self.live.foundation.database.run(read)

    async def is_in_force(self) -> bool:
        """Say whether the coordinator has seen the certificate on disk in use."""
        return self.serial != self.first and await self.credential(self.serial) is CredentialState.ACTIVE


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(agent.link.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(true: Callable[[], Awaitable[bool] | bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            now = true()
            if now if isinstance(now, bool) else await now:
                return
            await asyncio.sleep(0.02)
