"""Clocks that differ, over the wire: both sides see it before any work is offered, and it ends with its cause."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from hansa.v1 import catalogue_service_pb2
from tests.support.agent import make_bench
from tests.support.linked_agent import Agent, running, until
from tests.support.live_coordinator import RITA, LiveCoordinator, live_coordinator

pytestmark = pytest.mark.slow

NODE = "FI"
HOUR = timedelta(hours=1)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    async with live_coordinator(tmp_path / "coordinator") as live:
        bench = make_bench(tmp_path / "node")
        try:
            yield Agent(bench, live, await live.join(NODE))
        finally:
            bench.database.close()


async def listed_ahead(live: LiveCoordinator) -> int:
    """Return what researchers see of the node's clock."""
    request = catalogue_service_pb2.ListNodesRequest()
    (node,) = (await live.catalogue("ListNodes", request, RITA)).nodes
    return int(node.clock_ahead_seconds)


async def test_a_nodes_wrong_clock_is_seen_at_both_ends_and_forgotten_once_it_is_right(agent: Agent) -> None:
    watch, live = agent.link.parts.watch, agent.live
    agent.skew = -HOUR

    async def is_listed() -> bool:
        return abs(await listed_ahead(live) + 3600) < 60

    async def is_well() -> bool:
        return await listed_ahead(live) == 0

    async with running(agent):
        await until(lambda: agent.is_online)
        assert watch.is_wrong(), "known with the welcome: no offer is judged before"
        await until(is_listed)
        agent.skew = timedelta()
        await until(lambda: not watch.is_wrong())
        await until(is_well)


async def test_the_coordinators_wrong_clock_is_seen_by_its_nodes(agent: Agent) -> None:
    # Its own certificates and its nodes' are checked by TLS, which has the true time.
    agent.live.clock.shift = HOUR
    async with running(agent):
        await until(lambda: agent.is_online)
        assert agent.link.parts.watch.is_wrong()
        assert abs(agent.link.parts.watch.ahead_seconds + 3600) < 60
