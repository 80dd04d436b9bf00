"""T-C5: a coordinator that shows two views of its log, to a whole node that witnesses it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.contract.notes import coordinator_origin, sign_checkpoint
from hansa.v1 import node_service_pb2 as wire
from node_agent.audit.entries import Action
from tests.support.besieged_node import Outcome
from tests.support.evidence_world import TestLog
from tests.support.mutants import message_mutants
from tests.support.siege import Siege, siege
from tests.support.tally import report
from tests.support.trust_world import FEDERATION

pytestmark = pytest.mark.slow


@pytest.fixture
async def besieged(tmp_path: Path) -> AsyncIterator[Siege]:
    """A node at which honest jobs run."""
    async with siege(tmp_path) as found, found.node.running():
        await found.open()
        yield found
        await found.node.assert_unbroken()


def log_of(*words: str) -> TestLog:
    log = TestLog()
    for word in words:
        log.append({"v": 1, "at": "t", "action": word, "facts": {}, "subjects": {}})
    return log


def told(
    besieged: Siege, log: TestLog, *, key: Ed25519PrivateKey | None = None, start: int = 0
) -> wire.CoordinatorFrame:
    """Return the frame that shows ``log``, without a proof that it goes on from ``start`` entries."""
    key = key or besieged.world.keys["_coordinator"]
    note = sign_checkpoint(log.checkpoint(coordinator_origin(FEDERATION)), key)
    reply = wire.HeartbeatReply(log_checkpoint=note.to_bytes(), log_consistency_from=start)
    return wire.CoordinatorFrame(heartbeat_reply=reply)


async def forks(besieged: Siege) -> int:
    return sum(entry["action"] == Action.COORDINATOR_LOG_FORKED for entry in await besieged.node.entries())


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(("a", "b", "x"), id="another tree of the same size"),
        pytest.param(("a", "b"), id="a shorter one"),
        pytest.param(("a", "x", "c", "d"), id="a longer one that does not go on"),
    ],
)
async def test_evil_two_views_of_the_log_raise_an_alarm_and_end_all_work(
    besieged: Siege, second: tuple[str, ...]
) -> None:
    evil, node = besieged.evil, besieged.node
    await evil.send(told(besieged, log_of("a", "b", "c")))
    assert await forks(besieged) == 0

    await evil.send(told(besieged, log_of(*second), start=3))

    assert await forks(besieged) == 1
    outcome = await node.attempt("after the fork", lambda: evil.command(besieged.offer(besieged.spec())))
    assert outcome is Outcome.REFUSED
    assert node.reasons["LOG_FORKED"] == 1


async def test_evil_the_alarm_outlives_session_and_honest_words(besieged: Siege) -> None:
    """Who has seen a fork is not talked out of it by the coordinator; an operator of the node decides."""
    evil, node = besieged.evil, besieged.node
    await evil.send(told(besieged, log_of("a", "b", "c")))
    await evil.send(told(besieged, log_of("a", "b", "x")))
    await besieged.recover()
    await evil.send(told(besieged, log_of("a", "b", "c")))

    assert await node.attempt("still", lambda: evil.command(besieged.offer(besieged.spec()))) is Outcome.REFUSED


async def test_evil_a_checkpoint_of_anybody_elses_key_is_nothing(besieged: Siege) -> None:
    evil = besieged.evil
    await evil.send(told(besieged, log_of("a", "b", "c")))
    for key in (Ed25519PrivateKey.generate(), besieged.world.keys["snapshot"], besieged.world.keys["timestamp"]):
        await evil.send(told(besieged, log_of("a", "b", "x"), key=key))

    assert await forks(besieged) == 0
    await besieged.baseline()


async def test_evil_every_field_of_the_news_of_a_log_changed_once(besieged: Siege) -> None:
    """Nothing of it makes the node do or release anything else; at worst it raises its alarm, and stops."""
    evil, node = besieged.evil, besieged.node
    honest = told(besieged, log_of("a", "b", "c"))
    await evil.send(honest)

    for mutant in message_mutants(honest):
        await node.attempt(mutant.id, lambda mutant=mutant: evil.send(mutant.of(honest)))  # type: ignore[misc]

    report("news of the coordinator's log, each field changed once", node.outcomes, node.reasons)
    assert await forks(besieged) == 0
