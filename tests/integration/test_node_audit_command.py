"""``hansa-node audit`` against an agent's real API on its socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from hansa.contract.merkle import Frontier, leaf_hash, verify_inclusion
from hansa.contract.notes import Checkpoint, coordinator_origin, cosign, node_origin, open_checkpoint, sign_checkpoint
from hansa.contract.witnessing import LogNews
from node_agent.audit.entries import policy_changed
from node_agent.audit.log import append, erase
from node_agent.audit.trail import AuditTrail
from node_agent.audit.witness import LogWitness, Told, WitnessKeys
from node_agent.backups import Backups
from node_agent.datasets import Datasets
from node_agent.link.encoding import WireReporter
from node_agent.local_api.server import LocalApi
from node_agent.local_api.views import Views
from node_agent.policy.book import PolicyBook
from node_agent.policy.changes import PolicyChanges
from tests.support.agent import START, Bench, make_bench
from tests.support.agent_double import serving
from tests.support.node_commands import Done, hansa_node
from tests.support.restored_bench import raise_generation

NODE_KEY, LOG_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    database, state = made.database, made.state
    state.policy_file.touch()
    api = LocalApi(
        executions=made.executions,
        datasets=Datasets(
            database=database, state=state, reporter=WireReporter("FI"), bells=made.bells, clock=lambda: made.now
        ),
        airlock=made.airlock,
        policy=PolicyChanges(book=PolicyBook(state.policy_file), database=database, clock=lambda: made.now),
        audit=AuditTrail(database=database, clock=lambda: made.now, witness=witness_of(made)),
        approvals=made.approvals,
        backups=Backups(state=state, clock=lambda: made.now),
        views=Views(
            node="FI",
            federation="demo",
            state=state,
            database=database,
            link=dict,
            policy_digest=str,
            trust=dict,
            logs=witness_of(made).standing,
        ),
    )
    with serving(api.app(), state):
        yield made
    database.close()


def witness_of(bench: Bench) -> LogWitness:
    """Return the witness of a node whose coordinator has the key ``LOG_KEY``."""
    keys = WitnessKeys(
        federation="demo",
        node="FI",
        own=NODE_KEY,
        coordinator=LOG_KEY.public_key,
        report=WireReporter("FI").release_logged,
    )
    return LogWitness(bench.database, keys, lambda: bench.now)


def fill(bench: Bench, count: int) -> None:
    def work(session: Any) -> None:
        for number in range(count):
            append(session, policy_changed(f"sha256:{number:064x}", "olga"), START)

    bench.database._transact(work)


def audit(bench: Bench, *arguments: str) -> Done:
    return hansa_node(bench.state.path, "audit", *arguments)


def test_the_newest_entries_are_shown_with_who_and_why(bench: Bench) -> None:
    fill(bench, 5)
    bench.database._transact(lambda session: erase(session, index=4))
    done = audit(bench, "show", "--limit", "2")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("policy_changed") == 2
    assert "by: olga" in done.out
    assert "by: (erased)" in done.out
    found = json.loads(audit(bench, "show", "--limit", "2", "--output", "json").out)
    assert [entry["index"] for entry in found["entries"]] == [3, 4]
    assert found["size"] == 5


def test_an_empty_log_says_so_and_verifies(bench: Bench) -> None:
    assert "Nothing was decided yet." in audit(bench, "show").out
    assert audit(bench, "verify").code == 0


def test_a_policy_set_by_command_is_in_the_log_with_the_login_name(bench: Bench) -> None:
    assert hansa_node(bench.state.path, "policy", "set", "release", "auto").code == 0
    (entry,) = json.loads(audit(bench, "show", "--output", "json").out)["entries"]
    assert entry["action"] == "policy_changed"
    assert entry["subjects"]["by"]


def test_a_log_that_was_changed_fails_verification_and_names_the_first_wrong_entry(bench: Bench) -> None:
    fill(bench, 9)
    sound = audit(bench, "verify")
    assert (sound.code, "sound" in sound.out) == (0, True)
    bench.database._transact(
        lambda session: session.execute(
            text("UPDATE audit_leaves SET body = CAST(replace(body, '7', '8') AS BLOB) WHERE \"index\" = 7")
        )
    )
    broken = audit(bench, "verify", "--output", "json")
    assert broken.code == 1
    assert json.loads(broken.out)["fault"] == {"index": 7, "fault": "the entry was changed"}
    assert "BROKEN" in audit(bench, "verify").out


def test_an_export_can_be_verified_by_anybody_and_holds_no_name(bench: Bench, tmp_path: Path) -> None:
    fill(bench, 1003)  # more than one page
    file = tmp_path / "fi.jsonl"
    assert audit(bench, "export", str(file)).code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    head, *lines = [json.loads(line) for line in file.read_text().splitlines()]
    tree = Frontier()
    for line in lines:
        tree.append(leaf_hash(line["body"].encode()))
    assert (head["format"], head["size"], head["root"]) == ("hansa-audit-v1", 1003, tree.root().hex())
    assert "olga" not in file.read_text()
    noted = ("--size", str(head["size"]), "--root", head["root"])
    assert audit(bench, "verify", *noted).code == 0
    assert audit(bench, "verify", "--size", "1002", "--root", head["root"]).code == 1
    refused = audit(bench, "export", str(file))
    assert (refused.code, "FILE_INVALID" in refused.err) == (1, True)


def test_wrong_use_is_refused(bench: Bench) -> None:
    assert audit(bench, "verify", "--size", "3").code == 2
    assert audit(bench, "show", "--limit", "0").code == 2
    malformed = audit(bench, "verify", "--size", "3", "--root", "no root")
    assert (malformed.code, "MALFORMED" in malformed.err) == (1, True)


def test_an_entry_is_proved_under_the_nodes_signed_checkpoint(bench: Bench) -> None:
    fill(bench, 7)
    found = json.loads(audit(bench, "prove", "3", "--output", "json").out)
    note = open_checkpoint(found["checkpoint"].encode(), origin=node_origin("demo", "FI"), key=NODE_KEY.public_key())
    at, hashes = note.checkpoint, [bytes.fromhex(one) for one in found["hashes"]]
    assert verify_inclusion(leaf_hash(found["body"].encode()), 3, at.size, hashes, at.root)
    assert audit(bench, "prove", "3").code == 0
    beyond = audit(bench, "prove", "7")
    assert (beyond.code, "LOG_ENTRY_UNKNOWN" in beyond.err) == (1, True)


def test_the_checkpoint_is_printed_signed_and_with_the_coordinators_cosignature_once_there_is_one(
    bench: Bench,
) -> None:
    fill(bench, 2)
    none = audit(bench, "checkpoint", "--cosigned")
    assert (none.code, none.out) == (1, "")
    note = open_checkpoint(
        audit(bench, "checkpoint").out.encode(), origin=node_origin("demo", "FI"), key=NODE_KEY.public_key()
    )
    line = cosign(note.checkpoint, name=coordinator_origin("demo"), key=LOG_KEY, seconds=5)
    asyncio.run(witness_of(bench).hear(LogNews(witnessed_size=2, cosignature=line.to_bytes()), Told()))
    assert audit(bench, "checkpoint", "--cosigned").out == note.plus(line).to_bytes().decode()


def test_a_person_is_erased_by_command_and_the_log_says_so_without_the_name(bench: Bench) -> None:
    fill(bench, 4)
    done = audit(bench, "erase", "--person", "olga", "--output", "json")
    assert (done.code, json.loads(done.out)) == (0, {"erased": 4})
    entries = json.loads(audit(bench, "show", "--output", "json").out)["entries"]
    assert [entry["subjects"].get("by") for entry in entries[:4]] == [None] * 4
    assert (entries[4]["action"], entries[4]["facts"]) == ("subjects_erased", {"entries": 4, "first": 0, "last": 3})
    assert audit(bench, "verify").code == 0
    again = audit(bench, "erase", "--person", "olga")
    assert (again.code, "LOG_ENTRY_UNKNOWN" in again.err) == (1, True)
    assert audit(bench, "erase").code == 2
    assert audit(bench, "erase", "--index", "4").code == 0


def test_status_and_doctor_say_that_a_restored_store_waits_to_be_reconciled(bench: Bench) -> None:
    def store() -> tuple[dict[str, Any], str]:
        status = json.loads(hansa_node(bench.state.path, "status", "--output", "json").out)
        checks = json.loads(hansa_node(bench.state.path, "doctor", "--output", "json").out)["checks"]
        (found,) = (one for one in checks if one["check"] == "store")
        return status["store"], found["outcome"]

    assert store() == ({"generation": 1, "reconciled": True}, "ok")
    bench.database._transact(raise_generation)
    assert store() == ({"generation": 2, "reconciled": False}, "failed")


def test_an_alarm_is_shown_until_the_operator_accepts_the_coordinators_log(bench: Bench) -> None:
    refused = audit(bench, "accept-coordinator-log", "--reason", "why not")
    assert (refused.code, "NODE_STATE_CONFLICT" in refused.err) == (1, True)
    assert "does not continue" not in hansa_node(bench.state.path, "status").out
    witness = witness_of(bench)
    for root in (b"one tree", b"another"):
        told = sign_checkpoint(Checkpoint(coordinator_origin("demo"), 3, leaf_hash(root)), LOG_KEY).to_bytes()
        asyncio.run(witness.hear(LogNews(checkpoint=told), Told()))
    assert witness.alarm()
    status = json.loads(hansa_node(bench.state.path, "status", "--output", "json").out)
    assert "does not continue" in status["log_alarm"]
    checks = json.loads(hansa_node(bench.state.path, "doctor", "--output", "json").out)["checks"]
    (found,) = (one for one in checks if one["check"] == "coordinator's log")
    assert (found["outcome"], "accept-coordinator-log" in found["remedy"]) == ("failed", True)
    accepted = audit(bench, "accept-coordinator-log", "--reason", "restored after a fire")
    assert (accepted.code, "3 entries" in accepted.out) == (0, True)
    assert json.loads(hansa_node(bench.state.path, "status", "--output", "json").out)["log_alarm"] is None
    (last,) = json.loads(audit(bench, "show", "--limit", "1", "--output", "json").out)["entries"]
    assert (last["action"], last["subjects"]["reason"]) == ("coordinator_log_accepted", "restored after a fire")
