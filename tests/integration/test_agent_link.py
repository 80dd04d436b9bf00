"""The agent's link against a live coordinator: renewal of certificates, and commands that poison."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from coordinator.domain.membership import CredentialState
from coordinator.store.credentials import CredentialRepository
from coordinator.store.job_models import CommandRow
from coordinator.store.outboxes import CommandRepository
from hansa.contract.errors import Reason
from hansa.runtime.clock import utc_now
from hansa.v1 import node_service_pb2
from node_agent.durable import write_durably
from node_agent.keys.credential import (
    PENDING,
    SERVER_CA,
    Credential,
    load_credential,
    pending_key,
    signing_request,
    store_credential,
)
from node_agent.link.daemon import Link, LinkState
from node_agent.link.renewal import Renewal
from node_agent.link.session import SessionParts
from node_agent.spool.uploader import Uploader
from node_agent.store.models import RunRow
from tests.support.agent import Bench, make_bench
from tests.support.live_coordinator import LiveCoordinator, NodeKey, live_coordinator

pytestmark = pytest.mark.slow

PATIENCE = 30.0
NODE = "FI"


class Agent:
    """A node's link on a real store and key folder; ``agent`` runs it."""

    def __init__(self, bench: Bench, live: LiveCoordinator, key: NodeKey) -> None:
        self.bench, self.live, self.key, self.state = bench, live, key, bench.state
        write_durably(self.state.keys / SERVER_CA, live.root)
        store_credential(self.state, Credential(key.key_pem, key.certificate_pem.encode()))
        self.first = self.serial
        # How far the node's clock is ahead while it holds its first certificate.
        self.ahead = timedelta()
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
            clock=utc_now,
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


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    async with live_coordinator(tmp_path / "coordinator") as live:
        bench = make_bench(tmp_path / "node")
        try:
            yield Agent(bench, live, await live.join(NODE))
        finally:
            bench.database.close()


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


async def test_past_half_of_its_life_a_certificate_is_renewed_and_the_old_one_is_let_go(agent: Agent) -> None:
    agent.ahead = agent.live.foundation.config.node_certificate_life * 0.6
    async with running(agent):
        await until(agent.is_in_force)
        await until(lambda: agent.is_online)
        assert await agent.credential(agent.first) is CredentialState.SUPERSEDED
    assert not (agent.state.keys / PENDING).exists()


async def test_before_half_of_its_life_a_certificate_is_kept(agent: Agent) -> None:
    agent.ahead = agent.live.foundation.config.node_certificate_life * 0.4
    async with running(agent):
        await until(lambda: agent.is_online)
    assert agent.serial == agent.first


async def test_a_renewal_whose_answer_was_lost_is_asked_for_again_and_gets_the_same_certificate(agent: Agent) -> None:
    lost = await _ask(agent, pending_key(agent.state))
    agent.link.parts.wishes.renew.set()
    async with running(agent):
        await until(agent.is_in_force)
    assert load_credential(agent.state).certificate_pem.decode() == lost


async def test_a_crash_between_the_new_certificate_and_its_pending_key_does_not_end_renewals(agent: Agent) -> None:
    # What such a crash leaves: the key in force still lies there as pending.
    write_durably(agent.state.keys / PENDING, load_credential(agent.state).key_pem)
    agent.link.parts.wishes.renew.set()
    async with running(agent):
        await until(agent.is_in_force)


async def test_a_renewal_that_is_refused_leaves_the_session_open(agent: Agent) -> None:
    (agent.state.keys / PENDING).write_text("damaged")
    agent.link.parts.wishes.renew.set()
    with structlog.testing.capture_logs() as logs:
        async with running(agent):
            await until(lambda: any(line["event"] == "certificate_not_renewed" for line in logs))
            await until(lambda: agent.is_online)
    assert [line["event"] for line in logs].count("attached") == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xff\xff\xff", Reason.PROTOCOL_VIOLATION),
        (b"", Reason.VERSION_UNSUPPORTED),
        (
            node_service_pb2.CommandBody(
                offer=node_service_pb2.Offer(run_id="../../etc", attempt=1)
            ).SerializeToString(),
            Reason.PROTOCOL_VIOLATION,
        ),
    ],
)
async def test_a_command_that_poisons_is_shown_and_does_not_end_the_agent(
    agent: Agent, body: bytes, reason: Reason
) -> None:
    def poison(session: Transaction) -> None:
        CommandRepository(session).append(NODE, body, utc_now())

    await agent.live.foundation.database.run(poison)
    with structlog.testing.capture_logs() as logs:
        async with running(agent) as task:
            await until(lambda: agent.link.standing.reason == reason.value)
            assert not task.done()
    told = [line for line in logs if line["event"] == "session_ended" and line["log_level"] == "error"]
    assert {line["reason"] for line in told} == {reason.value}


async def test_a_store_that_cannot_write_ends_a_session_but_not_the_agent(agent: Agent) -> None:
    def pages(count: int) -> Callable[[Transaction], None]:
        return lambda session: session.connection().exec_driver_sql(f"PRAGMA max_page_count={count}").close()

    command = node_service_pb2.CommandBody(
        offer=node_service_pb2.Offer(run_id="a" * 32, attempt=1, job={"payload": b"x" * 30_000})  # type: ignore[arg-type]
    )
    await agent.bench.database.run(pages(1))
    await agent.live.foundation.database.run(
        lambda session: CommandRepository(session).append(NODE, command.SerializeToString(), utc_now())
    )
    with structlog.testing.capture_logs() as logs:
        async with running(agent) as task:
            await until(lambda: task.done() or any(line["event"] == "command_held" for line in logs))
            assert not task.done()
            await agent.bench.database.run(pages(1_000_000))
            await until(lambda: any(line["event"] == "offer_declined" for line in logs))


async def test_an_offer_for_which_there_is_no_room_is_not_acknowledged_and_comes_again(agent: Agent) -> None:
    room = False
    agent.link = replace(agent.link, parts=replace(agent.link.parts, has_room=lambda: room))
    named = "a" * 32
    body = node_service_pb2.CommandBody(offer=node_service_pb2.Offer(run_id=named, attempt=0)).SerializeToString()
    of_coordinator = agent.live.foundation.database.run
    await of_coordinator(lambda session: CommandRepository(session).append(NODE, body, utc_now()))

    async def acknowledged() -> bool:
        return await of_coordinator(lambda session: bool(session.scalar(select(CommandRow.acked))))

    with structlog.testing.capture_logs() as logs:
        async with running(agent):
            await until(lambda: any(line["event"] == "command_held" for line in logs))
            # The session stands, and tells what there is to tell.
            assert agent.is_online
            assert await agent.bench.database.run(lambda session: session.get(RunRow, named)) is None
            assert not await acknowledged()
            room = True
            await until(acknowledged)
    assert (await agent.bench.run(named)).state == "DECLINED"


async def _ask(agent: Agent, key_pem: bytes) -> str:
    stub = agent.live.node(agent.key)
    request = node_service_pb2.RenewCertificateRequest(
        request_id=str(uuid4()), csr_pem=signing_request(key_pem).decode()
    )
    return str((await stub.RenewCertificate(request, timeout=PATIENCE)).certificate_pem)
