"""Coordinator and agent die at every point of every transaction; nothing is lost and nothing happens twice.

One federation lives through the whole matrix. What a case has left behind is
therefore looked at by all that follow; a case that fails gets the next ones a
new federation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.crash_journeys import JOURNEYS
from tests.support.crash_matrix import ALSO, APART, READS, WRITES
from tests.support.crash_points import Phase
from tests.support.crash_steps import prepare, sound
from tests.support.crash_world import CrashWorld, crash_world
from tests.support.postgres import private_postgres

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.slow,
    # httpcore leaves a socket to the collector that found nobody to connect to: a worker's, while no agent is there.
    pytest.mark.filterwarnings("ignore:.*socket.socket.*family=1:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*socket.socket.*family=1:ResourceWarning"),
]

WORKER_POINTS = ("claim-unsent", "claim-unheard", "beat-unsent", "beat-unheard", "finish-unsent", "finish-unheard")
# On a second way through a point, a death before its work is one more death between two others.
WAYS = [
    *((point, journey, phase) for point, journey in WRITES.items() for phase in Phase),
    *((point, journey, phase) for point, journey in ALSO for phase in (Phase.UNCOMMITTED, Phase.COMMITTED)),
]
CASES = [pytest.param(*way, id="-".join(way)) for way in WAYS]


# A few of the coordinator's, each of another kind, on PostgreSQL too.
ON_POSTGRESQL = (
    "coordinator.services.submission.submit_job",
    "coordinator.services.sessions.NodeSession._apply_batch",
    "coordinator.services.collection.collect",
    "coordinator.services.jobs.cancel_job",
    "coordinator.api.admin.AdminServicer.InviteNode.work",
    "coordinator.services.trust.put_in_force",
)


class Federations:
    """One federation after the other; a new one is made when the one before is in doubt."""

    def __init__(self, folder: Path, new_database: Callable[[], str] = lambda: "") -> None:
        self._folder, self._made = folder, 0
        self._new_database = new_database
        self._stack = AsyncExitStack()
        self._standing: CrashWorld | None = None

    async def sound_one(self) -> CrashWorld:
        """Return the federation that stands; it is in doubt until ``vouch``."""
        if self._standing is None:
            await self._stack.aclose()
            self._made += 1
            made = crash_world(self._folder / str(self._made), self._new_database())
            self._standing = await self._stack.enter_async_context(made)
            await prepare(self._standing)
        world, self._standing = self._standing, None
        return world

    def vouch(self, world: CrashWorld) -> None:
        """Say that the federation is as it should be."""
        self._standing = world

    async def aclose(self) -> None:
        await self._stack.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def federations(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federations]:
    made = Federations(tmp_path_factory.mktemp("crash"))
    yield made
    await made.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_postgresql(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federations]:
    with private_postgres() as server:
        made = Federations(tmp_path_factory.mktemp("crash-pg"), server.new_database)
        yield made
        await made.aclose()


@pytest.mark.parametrize(("point", "journey", "phase"), CASES)
async def test_who_dies_at_a_transaction_loses_nothing_and_does_nothing_twice(
    federations: Federations, point: str, journey: str, phase: Phase
) -> None:
    await survives(federations, point, journey, phase)


@pytest.mark.parametrize("phase", [Phase.UNCOMMITTED, Phase.COMMITTED])
@pytest.mark.parametrize("point", ON_POSTGRESQL)
async def test_a_coordinator_on_postgresql_that_dies_loses_nothing_and_does_nothing_twice(
    on_postgresql: Federations, point: str, phase: Phase
) -> None:
    await survives(on_postgresql, point, WRITES[point], phase)


async def survives(federations: Federations, point: str, journey: str, phase: Phase) -> None:
    """Take the journey with a death at the point, and look at everything afterwards."""
    world = await federations.sound_one()
    world.plan.arm(point, phase)
    await JOURNEYS[journey](world)
    assert world.plan.fired == 1, f"{journey} does not reach {point}"
    await sound(world)
    await world.calm()
    federations.vouch(world)


@pytest.mark.parametrize("point", WORKER_POINTS)
async def test_a_worker_that_dies_loses_no_run_and_releases_none_twice(federations: Federations, point: str) -> None:
    world = await federations.sound_one()
    world.worker.armed, deaths = point, world.worker.deaths
    await JOURNEYS["a_held_job" if point.startswith("beat") else "a_job"](world)
    assert world.worker.deaths == deaths + 1
    await sound(world)
    await world.calm()
    federations.vouch(world)


async def test_what_is_said_to_read_only_has_never_written(federations: Federations) -> None:
    world = await federations.sound_one()
    for journey in JOURNEYS.values():
        await asyncio.wait_for(journey(world), 60)
    assert sorted(name for name in READS if world.plan.wrote[name]) == []
    assert sorted(set(world.plan.seen) - READS - set(WRITES) - set(APART)) == []
