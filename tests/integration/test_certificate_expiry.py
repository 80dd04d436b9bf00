"""A node whose certificate has ended, and the way back: a new certificate for the same node, and nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import structlog
from sqlalchemy.orm import Session as Transaction

from coordinator.domain.membership import CredentialState
from coordinator.services.nodes import quarantine_node
from coordinator.store.sessions import SessionRepository
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId
from hansa.runtime.clock import utc_now
from node_agent.config import PINNED_ROOT, AgentConfig, config_text
from node_agent.durable import write_durably
from node_agent.keys.credential import load_credential
from node_agent.keys.enrolment import EnrolmentOutcome, enrol_again
from node_agent.link.daemon import LinkState
from node_agent.store.outbox import append_event, event_head
from tests.support.agent import make_bench
from tests.support.linked_agent import Agent, running, until
from tests.support.live_coordinator import FEDERATION, LiveCoordinator, NodeKey, live_coordinator

pytestmark = pytest.mark.slow

NODE = "FI"


@dataclass
class World:
    live: LiveCoordinator
    agent: Agent

    async def is_refused(self) -> bool:
        """Say whether the node says that its certificate is refused."""
        standing = self.agent.link.standing
        return (standing.state, standing.reason) == (LinkState.REFUSED, Reason.CERTIFICATE_REFUSED)

    async def tell(self) -> None:
        """Put an event into the node's outbox."""
        bench = self.agent.bench
        await bench.database.run(
            lambda s: append_event(s, bench.scheduler.reporter.inventory([], utc_now()), utc_now())
        )
        bench.bells.ring()

    async def heads(self) -> tuple[int, int]:
        """Return the numbers of the node's last event, and of the last that the coordinator has applied."""
        head = await self.agent.bench.database.run(event_head)

        def known(session: Transaction) -> int:
            return SessionRepository(session).standing(NODE).store.event_cursor.seq

        return head.seq, await self.live.foundation.database.run(known)

    async def all_told(self) -> bool:
        """Say whether the coordinator has applied all that the node had to tell."""
        here, there = await self.heads()
        return here == there

    async def enrol_again(self, token: str) -> EnrolmentOutcome:
        return await asyncio.to_thread(enrol_again, token, self.agent.state)


async def joined(live: LiveCoordinator, folder: Path, *, left: timedelta) -> World:
    """Return a node that is a member, with so much time left of its certificate."""
    token, key = await live.invite(NODE), NodeKey()
    # The certificate's whole life has begun so long ago; TLS itself keeps to the true time.
    live.clock.shift = left - live.foundation.config.node_certificate_life
    await live.enrol(token, key)
    live.clock.shift = timedelta()
    await live.confirm(NODE, key.fingerprint)
    agent = Agent(make_bench(folder), live, key)
    # The day to renew does not come: its clock is behind while it holds this one.
    agent.ahead = -live.foundation.config.node_certificate_life
    config = AgentConfig(federation=FEDERATION, node=NodeId(NODE), node_endpoint=live.address("node"))
    write_durably(agent.state.config_file, config_text(config).encode())
    write_durably(agent.state.trust / PINNED_ROOT, live.trust.root)
    return World(live, agent)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveCoordinator]:
    async with live_coordinator(tmp_path / "coordinator") as made:
        yield made


async def test_a_node_whose_certificate_ends_in_a_session_comes_back_with_a_new_one_and_all_it_had_to_tell(
    live: LiveCoordinator, tmp_path: Path
) -> None:
    world = await joined(live, tmp_path / "node", left=timedelta(seconds=20))
    agent = world.agent
    try:
        async with running(agent) as task:
            await until(lambda: agent.is_online)
            await world.tell()
            await until(world.all_told)
            await until(world.is_refused)
            # TLS refuses it now; its agent goes on, and what it has to tell waits.
            await world.tell()
            store = (await world.heads())[0]
            assert not await world.all_told()

            outcome = await world.enrol_again(await live.invite(NODE, again=True))
            await until(lambda: agent.link.standing.state is LinkState.WAITING)
            assert not await world.all_told(), "nothing is taken before an operator has compared the fingerprint"
            await live.confirm(NODE, outcome.fingerprint)
            await until(world.all_told)
            assert not task.done()
        assert await agent.credential(agent.first) is CredentialState.REVOKED
        assert await agent.is_in_force()
        assert (await world.heads())[0] >= store
    finally:
        agent.bench.database.close()


async def test_a_node_that_was_away_when_its_certificate_ended_says_so(live: LiveCoordinator, tmp_path: Path) -> None:
    world = await joined(live, tmp_path / "node", left=timedelta(seconds=-5))
    try:
        async with running(world.agent) as task:
            await until(world.is_refused)
            assert not task.done()
    finally:
        world.agent.bench.database.close()


async def test_an_invitation_of_a_member_revokes_its_certificate_and_ends_its_session_at_once(
    live: LiveCoordinator, tmp_path: Path
) -> None:
    world = await joined(live, tmp_path / "node", left=timedelta(hours=1))
    agent = world.agent
    try:
        async with running(agent):
            await until(lambda: agent.is_online)
            token = await live.invite(NODE, again=True)
            await until(world.is_refused)
            assert await agent.credential(agent.first) is CredentialState.REVOKED
            thief = await live.enrol(token, NodeKey())
            with pytest.raises(HansaError) as caught:
                await world.enrol_again(token)
            assert caught.value.reason is Reason.ENROLMENT_REFUSED, "the token is bound to the key that came first"
            # The fingerprints differ, the operators invite once more, and the thief's key is worth nothing.
            outcome = await world.enrol_again(await live.invite(NODE, again=True))
            assert outcome.fingerprint != thief.fingerprint
            await live.confirm(NODE, outcome.fingerprint)
            await until(lambda: agent.is_online)
    finally:
        agent.bench.database.close()


@pytest.mark.parametrize("wrong", ["node", "coordinator", "root"])
async def test_an_invitation_that_would_move_the_node_elsewhere_is_refused_before_anything_is_sent(
    live: LiveCoordinator, tmp_path: Path, wrong: str
) -> None:
    world = await joined(live, tmp_path / "node", left=timedelta(hours=1))
    state = world.agent.state
    before = load_credential(state)
    token = await live.invite("ES" if wrong == "node" else NODE, again=wrong != "node")
    if wrong == "root":
        write_durably(state.trust / PINNED_ROOT, b"another root")
    if wrong == "coordinator":
        other = live.foundation.keys.node_ca.certificate_pem
        write_durably(state.keys / "server-ca.pem", other)
    try:
        with structlog.testing.capture_logs() as logs, pytest.raises(HansaError) as caught:
            await world.enrol_again(token)
        expected = Reason.NODE_STATE_CONFLICT if wrong == "node" else Reason.FINGERPRINT_MISMATCH
        assert caught.value.reason is expected
        assert load_credential(state) == before
        assert not any("enrolled" in line["event"] for line in logs)
    finally:
        world.agent.bench.database.close()


async def test_a_node_that_is_set_apart_is_not_invited_again(live: LiveCoordinator) -> None:
    await live.join(NODE)
    now = utc_now()
    await live.foundation.database.run(lambda s: quarantine_node(s, NodeId(NODE), "the node's events have forked", now))
    with pytest.raises(Exception, match="QUARANTINED"):
        await live.invite(NODE, again=True)
