"""A node's trust over the real channel: mutual TLS, a live coordinator, its mirror, its commands."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import structlog
from sqlalchemy.orm import Session as Transaction

from coordinator.store.outboxes import CommandRepository
from hansa.contract.envelope import JOB_TYPE, sign
from hansa.contract.ids import run_id
from hansa.contract.job import DatasetRef, JobSpec
from hansa.contract.raw_keys import key_digest, key_text
from hansa.runtime.clock import utc_now
from hansa.v1 import node_service_pb2, types_pb2
from node_agent.config import PINNED_ROOT, create_state_folder
from node_agent.durable import write_durably
from node_agent.keys.credential import SERVER_CA, Credential, store_credential
from node_agent.link.daemon import Link, LinkState
from node_agent.link.renewal import Renewal
from node_agent.link.session import SessionParts
from node_agent.policy.policy import data_holder
from node_agent.spool.uploader import Uploader
from node_agent.store.models import RunRow
from tests.support.agent import NODE, SNAPSHOT, Bench, job, open_bench
from tests.support.live_coordinator import LiveCoordinator, NodeKey, live_coordinator

pytestmark = pytest.mark.slow

PATIENCE = 30.0


@dataclass
class Agent:
    """FI's link to a live coordinator whose trust repository it has pinned, and fetched nothing of."""

    bench: Bench
    live: LiveCoordinator
    link: Link

    @property
    def is_online(self) -> bool:
        return self.link.standing.state is LinkState.ONLINE

    def job(self, **changes: Any) -> JobSpec:
        """Return a job of the federation's project, valid now."""
        world, now = self.live.trust, utc_now()
        (dataset,) = (name for name in world.directory.projects[0].datasets if name.startswith(f"{NODE}/"))
        ref = DatasetRef(node=NODE, dataset=dataset.removeprefix(f"{NODE}/"), snapshot=SNAPSHOT)
        values = {
            "federation": world.directory.federation,
            "directory_version": world.directory.version,
            "analysis": world.analysis,
            "datasets": (ref,),
            "quorum": 1,
            "not_before": now,
            "not_after": now + timedelta(hours=1),
        }
        return job(**{**values, **changes})

    async def send(self, **body: Any) -> None:
        """Put a command into the coordinator's outbox; it goes out at the next attach or ring."""
        command = node_service_pb2.CommandBody(**body).SerializeToString()

        def append(session: Transaction) -> None:
            CommandRepository(session).append(NODE, command, utc_now())

        await self.live.foundation.database.run(append)

    async def offer(self, spec: JobSpec) -> str:
        """Send the offer of ``spec``; return the run's id."""
        name = run_id(spec.job_id, NODE, 1)
        signed = sign(JOB_TYPE, spec.to_bytes(), key_id=spec.submitter, key=self.live.trust.keys[spec.submitter])
        signature = types_pb2.Signature(key_id=signed.key_id, signature=signed.signature)
        envelope = types_pb2.Envelope(payload_type=signed.payload_type, payload=signed.payload, signatures=[signature])
        await self.send(offer=node_service_pb2.Offer(run_id=name, job_id=spec.job_id, round=1, attempt=1, job=envelope))
        return name

    async def decided(self, name: str) -> tuple[str, str]:
        """Return state and reason of a run once it is there."""
        found: list[RunRow] = []

        async def there() -> bool:
            row = await self.bench.database.run(lambda session: session.get(RunRow, name))
            found[:] = [row] if row is not None else []
            return bool(found)

        await until(there)
        return found[0].state, found[0].reason


def policy_for(live: LiveCoordinator) -> dict[str, Any]:
    pin = data_holder("holder-fi", key_digest(key_text(live.keys["holder-fi"].public_key())))
    key = f"{live.trust.analysis.name}@{live.trust.analysis.version}"
    return {"admission": {"submitters": ["ada"], "analyses": [key]}, "approval": {"data_holders": [pin]}}


def make_link(bench: Bench, live: LiveCoordinator, key: NodeKey) -> Link:
    write_durably(bench.state.keys / SERVER_CA, live.root)
    store_credential(bench.state, Credential(key.key_pem, key.certificate_pem.encode()))

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
        endpoint=live.address("node"),
        state=bench.state,
        parts=parts,
        uploader=Uploader(database=bench.database, bells=bench.bells, clock=utc_now),
        renewal=Renewal(state=bench.state, clock=utc_now, draw=lambda: 0.0),
        clock=utc_now,
        draw=random.random,
    )


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    async with live_coordinator(tmp_path / "coordinator") as live:
        state = create_state_folder(tmp_path / "state")
        (state.trust / PINNED_ROOT).write_bytes(live.trust.root)
        bench = open_bench(state, live.trust, policy_for(live), approved=False, trusted=False)
        bench.now = utc_now()
        try:
            yield Agent(bench, live, make_link(bench, live, await live.join(NODE)))
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


async def test_a_node_that_attaches_fetches_and_verifies_the_repository_over_its_own_channel(agent: Agent) -> None:
    async with running(agent):
        await until(lambda: agent.bench.trust.directory_version == agent.live.trust.directory.version)
    assert agent.bench.trust.fault == ""
    assert list(agent.bench.catalogue) == ["allele-frequency@1.0"]
    assert agent.bench.catalogue["allele-frequency@1.0"].digest == agent.live.trust.analysis.digest


async def test_what_operators_publish_is_in_force_at_the_node_once_it_is_told(agent: Agent) -> None:
    async with running(agent):
        await until(lambda: agent.bench.trust.directory_version == 1)
        agent.live.trust.change(witnesses=())
        await agent.live.publish()
        await agent.send(trust_update=node_service_pb2.TrustUpdate())
        await until(lambda: agent.bench.trust.directory_version == 2)


async def test_an_offer_of_a_directory_that_was_just_published_is_not_turned_away(agent: Agent) -> None:
    async with running(agent):
        await until(lambda: agent.bench.trust.directory_version == 1)
        agent.live.trust.change(witnesses=())
        await agent.live.publish()
        assert agent.live.trust.directory.version == 2
        name = await agent.offer(agent.job())
        assert await agent.decided(name) == ("AWAITING_APPROVAL", "")
        assert agent.bench.trust.directory_version == 2


async def test_an_offer_of_a_directory_that_nobody_has_signed_is_declined_and_the_session_goes_on(
    agent: Agent,
) -> None:
    ahead, sound = await agent.offer(agent.job(directory_version=99)), await agent.offer(agent.job())
    with structlog.testing.capture_logs() as logs:
        async with running(agent):
            assert await agent.decided(ahead) == ("DECLINED", "DIRECTORY_BEHIND")
            assert await agent.decided(sound) == ("AWAITING_APPROVAL", "")
    assert [line["event"] for line in logs].count("attached") == 1


async def test_a_node_that_pinned_another_root_believes_nothing_of_it_and_stays_attached(agent: Agent) -> None:
    (agent.bench.state.trust / PINNED_ROOT).write_bytes(b"{}")
    name = await agent.offer(agent.job())
    async with running(agent):
        await until(lambda: agent.bench.trust.fault != "")
        await until(lambda: agent.is_online)
        assert await agent.decided(name) == ("DECLINED", "DIRECTORY_BEHIND")
    assert agent.bench.trust.view is None
