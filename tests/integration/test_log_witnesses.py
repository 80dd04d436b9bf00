"""Coordinator and nodes as witnesses of each other's audit logs, on real stores."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from coordinator.services.witnessing import published_checkpoint
from coordinator.store.audit_check import verify_log
from coordinator.store.database import Database
from coordinator.store.nodes import NodeRepository
from coordinator.store.witnesses import CheckpointRepository, NodeLogRepository
from hansa.contract.errors import HansaError, Reason
from hansa.contract.merkle import leaf_hash
from hansa.contract.notes import Checkpoint, coordinator_origin, cosigned_at, node_origin, parse_note, sign_checkpoint
from hansa.contract.witnessing import LogNews
from node_agent.audit.entries import Decider, Judgement, summary_released
from node_agent.audit.log import size_of
from node_agent.audit.trail import AuditTrail
from node_agent.store.models import RunRow
from tests.support.log_worlds import FEDERATION, LoggingNode, LogWorld, log_world
from tests.support.stores import empty_store_url, postgres, store

__all__ = ["empty_store_url", "postgres", "store"]


@pytest.fixture
def world(store: Database, tmp_path: Path) -> Iterator[LogWorld]:
    with log_world(store, tmp_path) as made:
        yield made


def published(world: LogWorld) -> tuple[int, set[str]]:
    """Return the published checkpoint's size, and who has cosigned it, by the directory's keys."""
    note = world.run(lambda session: published_checkpoint(session, world.keeper, world.clock()))
    names = {
        node.name
        for node in world.nodes.values()
        for line in note.lines
        if cosigned_at(note.checkpoint, line, name=node_origin(FEDERATION, node.name), key=node.key.public_key())
        is not None
    }
    return note.checkpoint.size, names


def node_actions(node: LoggingNode) -> list[str]:
    found = asyncio.run(AuditTrail(database=node.database).entries(after=-1, limit=1000))
    return [entry["action"] for entry in found["entries"]]


def state_of(world: LogWorld, node: str) -> tuple[str, str]:
    found = world.run(lambda session: NodeRepository(session).get(node))
    return found.state.value, found.reason


def test_after_some_heartbeats_all_nodes_have_cosigned_one_checkpoint_of_the_coordinator(world: LogWorld) -> None:
    for name in ("FI", "ES", "GB"):
        world.join(name)
    world.act(5)
    world.settle()
    assert published(world) == (5, {"FI", "ES", "GB"})


def test_the_coordinator_witnesses_each_nodes_log_and_the_node_keeps_its_cosignature(world: LogWorld) -> None:
    node = world.join("FI")
    node.decide(7)
    world.settle()
    node.decide(4)
    world.settle()
    seen = world.run(lambda session: NodeLogRepository(session).get("FI"))
    note = parse_note(asyncio.run(node.witness.checkpoint())["cosigned"].encode())
    line = note.lines[1]
    key = world.log_key.public_key()
    assert (seen.seen.size, note.checkpoint.size) == (11, 11)
    assert cosigned_at(note.checkpoint, line, name=coordinator_origin(FEDERATION), key=key) is not None


def test_where_nothing_is_new_heartbeats_carry_no_checkpoint(world: LogWorld) -> None:
    node = world.join("FI")
    world.act(3)
    node.decide(3)
    world.settle()
    news = asyncio.run(node.witness.news(node.told))
    answer = world.take(node, news, told=3)
    assert news == LogNews(witnessed_size=3)
    assert answer.answer == LogNews(witnessed_size=3)


def test_a_checkpoint_stands_until_all_connected_nodes_have_cosigned_it_but_not_for_ever(world: LogWorld) -> None:
    fi, es = world.join("FI"), world.join("ES")
    world.act(2)
    world.beat(fi)
    world.act(2)
    world.beat(fi)
    assert published(world) == (2, {"FI"})
    world.settle()
    assert published(world) == (4, {"FI", "ES"})
    world.act(1)
    world.beat(es)
    world.act(1)
    world.clock.advance(11)
    world.settle()
    assert published(world)[0] == 6


# --- T-C5: split view --------------------------------------------------------------------


def split_view(world: LogWorld, node: LoggingNode) -> LogNews:
    """Return what a coordinator says that shows this node another tree of the same size."""
    forged = Checkpoint(coordinator_origin(FEDERATION), 3, leaf_hash(b"another tree"))
    return LogNews(sign_checkpoint(forged, world.log_key).to_bytes(), proven_from=0, witnessed_size=0)


def test_a_node_never_cosigns_two_trees_of_one_size_and_raises_the_alarm(world: LogWorld) -> None:
    node = world.join("FI")
    world.act(3)
    world.settle()
    before = asyncio.run(node.witness.standing())
    asyncio.run(node.witness.hear(split_view(world, node), node.told))
    assert node.witness.alarm()
    assert node_actions(node)[-1] == "coordinator_log_forked"
    after = asyncio.run(node.witness.standing())
    assert (before["coordinator_log"], after["coordinator_log"]) == (3, 3)
    assert "does not continue" in after["log_alarm"]
    # Whatever comes afterwards, the true log too, gets no cosignature until an operator has looked.
    world.act(2)
    world.settle()
    assert asyncio.run(node.witness.news(node.told)).cosignature == b""
    assert asyncio.run(node.witness.standing())["coordinator_log"] == 3


def test_an_alarm_outlives_the_agent_and_ends_by_an_operators_logged_word_only(world: LogWorld) -> None:
    node = world.join("FI")
    world.act(3)
    world.settle()
    asyncio.run(node.witness.hear(split_view(world, node), node.told))
    node.database.close()
    node.open()
    assert node.witness.alarm()
    with pytest.raises(HansaError) as caught:
        asyncio.run(node.witness.accept_coordinator_log(by="olga", reason=" "))
    assert caught.value.reason is Reason.PARAMETER_MISSING
    found = asyncio.run(node.witness.accept_coordinator_log(by="olga", reason="restored after a fire"))
    assert (found["log_alarm"], node.witness.alarm()) == (None, False)
    assert node_actions(node)[-1] == "coordinator_log_accepted"
    with pytest.raises(HansaError) as caught:
        asyncio.run(node.witness.accept_coordinator_log(by="olga", reason="again"))
    assert caught.value.reason is Reason.NODE_STATE_CONFLICT


@pytest.mark.parametrize("table", ["audit_leaves", "witness"])
def test_what_a_node_cannot_store_it_does_not_cosign(world: LogWorld, table: str) -> None:
    node = world.join("FI")
    world.act(3)
    world.settle()
    refuse = f"CREATE TRIGGER refuse BEFORE UPDATE ON {table} BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    node.database._transact(lambda session: session.execute(text(refuse.replace("UPDATE ON audit", "INSERT ON audit"))))
    if table == "witness":
        world.act(1)
        with pytest.raises(Exception, match="disk full"):
            world.settle()
        assert asyncio.run(node.witness.standing())["coordinator_log"] == 3
    else:
        # An alarm that cannot be logged is not swallowed: the session breaks, and comes again.
        with pytest.raises(Exception, match="disk full"):
            asyncio.run(node.witness.hear(split_view(world, node), node.told))
        assert node.witness.alarm()


# --- T-I3 and restored backups -------------------------------------------------------------


def test_a_node_whose_log_was_cut_is_set_apart_at_its_next_heartbeats(world: LogWorld) -> None:
    node = world.join("FI")
    node.decide(5)
    backup = node.back_up()
    node.decide(3)
    world.settle()
    node.restore(backup)
    assert not world.beat(node).quarantined
    assert world.beat(node).quarantined == "LOG_FORKED"
    assert state_of(world, "FI") == ("QUARANTINED", "LOG_FORKED")
    assert world.audit()[-2:] == ["node_log_forked", "node_quarantined"]
    assert world.run(verify_log).first_wrong is None


def test_a_node_that_was_restored_and_went_on_to_the_same_size_is_set_apart(world: LogWorld) -> None:
    node = world.join("FI")
    node.decide(5)
    backup = node.back_up()
    node.decide(3)
    world.settle()
    node.restore(backup)
    node.decide(3)
    world.beat(node)
    assert world.beat(node).quarantined == "LOG_FORKED"


def test_a_node_that_was_restored_and_has_grown_past_what_was_seen_is_set_apart(world: LogWorld) -> None:
    node = world.join("FI")
    node.decide(5)
    backup = node.back_up()
    node.decide(3)
    world.settle()
    node.restore(backup)
    node.decide(30)
    world.beat(node)
    assert world.beat(node).quarantined == "LOG_FORKED"


def test_a_node_that_operators_have_resumed_is_witnessed_from_the_log_that_it_has_now(world: LogWorld) -> None:
    node = world.join("FI")
    node.decide(5)
    backup = node.back_up()
    node.decide(3)
    world.settle()
    node.restore(backup)
    world.beat(node)
    world.beat(node)
    world.run(lambda session: session.execute(text("UPDATE nodes SET state = 'ACTIVE'")))
    node.decide(1)
    node.told = type(node.told)()
    world.settle()
    assert "node_log_accepted" in world.audit()
    assert world.run(lambda session: NodeLogRepository(session).get("FI")).seen.size == 6


def test_a_coordinator_that_was_restored_from_a_backup_raises_the_nodes_alarm(world: LogWorld) -> None:
    node = world.join("FI")
    world.act(8)
    world.settle()
    world.run(_cut_coordinators_log)
    node.told = type(node.told)()
    world.beat(node)
    assert node.witness.alarm()


def _cut_coordinators_log(session: Session) -> None:
    for statement in (
        'DELETE FROM audit WHERE "index" > 4',
        'DELETE FROM audit_leaves WHERE "index" > 4',
        'DELETE FROM audit_nodes WHERE (level = 1 AND "index" > 1) OR (level = 2 AND "index" > 0) OR level > 2',
        "DELETE FROM cosignatures",
        "DELETE FROM checkpoints",
    ):
        session.execute(text(statement))


# --- what is malformed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint": b"no note"},
        {"proof": (b"x" * 31,)},
        {"proof": (b"x" * 32,) * 66},
        {"cosignature": b"no line\n"},
    ],
)
def test_malformed_news_are_refused_and_change_nothing(world: LogWorld, changes: dict[str, object]) -> None:
    node = world.join("FI")
    node.decide(2)
    with pytest.raises(HansaError) as caught:
        world.beat(node, **changes)
    assert caught.value.reason is Reason.NOTE_INVALID
    assert world.run(lambda session: NodeLogRepository(session).get("FI")).seen.size == 0
    if "cosignature" not in changes:
        with pytest.raises(HansaError):
            asyncio.run(node.witness.hear(LogNews(**{"checkpoint": b"x", **changes}), node.told))  # type: ignore[arg-type]


def test_a_checkpoint_by_another_key_counts_for_nothing_on_either_side(world: LogWorld) -> None:
    fi, es = world.join("FI"), world.join("ES")
    world.act(2)
    fi.decide(2)
    es.decide(2)
    world.settle()
    es.decide(1)
    theirs = asyncio.run(es.witness.news(es.told))
    world.take(fi, theirs)
    assert state_of(world, "FI")[0] == "ACTIVE"
    assert world.run(lambda session: NodeLogRepository(session).get("FI")).seen.size == 2
    forged = sign_checkpoint(Checkpoint(coordinator_origin(FEDERATION), 9, leaf_hash(b"x")), es.key).to_bytes()
    asyncio.run(fi.witness.hear(LogNews(forged, 2, (), 2), fi.told))
    assert not fi.witness.alarm()


def test_anothers_cosignature_is_not_kept(world: LogWorld) -> None:
    fi, es = world.join("FI"), world.join("ES")
    world.act(2)
    world.beat(fi)
    line = asyncio.run(fi.witness.news(fi.told)).cosignature
    world.take(es, LogNews(witnessed_size=2, cosignature=line))
    found = world.run(lambda session: CheckpointRepository(session).newest())
    assert found.cosigners == set()


def test_news_of_an_older_session_are_refused(world: LogWorld) -> None:
    node = world.join("FI")
    node.epoch = 0
    with pytest.raises(HansaError) as caught:
        world.beat(node)
    assert caught.value.reason is Reason.EPOCH_FENCED


# --- proofs of releases ---------------------------------------------------------------------


def released_run() -> RunRow:
    return RunRow(
        run_id="a" * 32, job_id="j", attempt=1, execution=1, analysis="allele-frequency@1.0", dataset="FI-lct"
    )


def test_the_proof_of_a_release_is_told_once_and_only_under_a_cosigned_checkpoint(world: LogWorld) -> None:
    node = world.join("FI")
    node.decide(2)
    entry = summary_released(released_run(), b"d" * 32, Judgement(Decider.RULES, "rules", "auto"))
    node.decide(entry=entry)
    node.decide(2)
    assert node.proven == []
    world.settle()
    (proven,) = node.proven
    note = parse_note(proven.checkpoint)
    assert (proven.index, note.checkpoint.size, len(note.lines)) == (2, 5, 2)
    node.decide(3)
    world.settle()
    assert len(node.proven) == 1


def test_proofs_of_many_releases_are_all_told_without_the_log_having_to_grow(world: LogWorld) -> None:
    # As after a restore, when all that was ever released is proven again.
    node = world.join("FI")
    entry = summary_released(released_run(), b"d" * 32, Judgement(Decider.RULES, "rules", "auto"))
    node.decide(count=50, entry=entry)
    world.settle(rounds=6)
    assert [one.index for one in node.proven] == list(range(50))
    # With nothing owed, heartbeats are quiet again.
    assert not node.told.owes_proofs


def test_an_unproven_checkpoint_is_asked_for_again(world: LogWorld) -> None:
    node = world.join("FI")
    node.decide(4)
    world.settle()
    node.decide(4)
    news = asyncio.run(node.witness.news(node.told))
    answer = world.take(node, replace(news, proven_from=2))
    assert (answer.quarantined, answer.answer.witnessed_size) == ("", 4)
    world.settle()
    assert world.run(lambda session: NodeLogRepository(session).get("FI")).seen.size == node.database._transact(size_of)
