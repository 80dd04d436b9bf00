"""The node's audit log: what it records, when, and that a change of it shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError, Reason
from hansa.contract.merkle import leaf_hash, verify_consistency, verify_inclusion
from node_agent.airlock.gate import RELEASE, WITHHOLD
from node_agent.airlock.released import ReleasedSummary
from node_agent.audit.entries import Action, Entry
from node_agent.audit.log import append, erase, leaves, prove_consistency, prove_inclusion, root_of, size_of
from node_agent.audit.trail import AuditTrail
from node_agent.audit.verification import PAGE
from node_agent.datasets import Datasets
from node_agent.executions import Finish, Outcome
from node_agent.link.encoding import WireReporter
from node_agent.policy.book import PolicyBook
from node_agent.policy.changes import PolicyChanges
from node_agent.policy.policy import policy_digest, policy_of
from node_agent.store.database import Database, open_engine
from node_agent.store.models import Base, SummaryRow
from tests.support.agent import OPEN_POLICY, SNAPSHOT, Bench, collected, job, make_bench, offer

NOW = datetime(2026, 3, 1, tzinfo=UTC)
# What a full disk does to the log, and to the log only.
UNWRITABLE = "CREATE TRIGGER unwritable BEFORE INSERT ON {} BEGIN SELECT RAISE(ABORT, 'disk full'); END"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def manual(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path, {**OPEN_POLICY, "release": {"mode": "manual"}})
    yield made
    made.database.close()


def finish(run: Any, body: str | None = None) -> Finish:
    return Finish(run_id=run.run_id, execution=run.execution, outcome=Outcome.SUMMARY, summary=body or collected())


async def entries(bench: Bench) -> list[dict[str, Any]]:
    found = await AuditTrail(database=bench.database).entries(after=-1, limit=1000)
    return list(found["entries"])


async def actions(bench: Bench) -> list[str]:
    return [entry["action"] for entry in await entries(bench)]


async def verdict(bench: Bench, **noted: Any) -> dict[str, Any] | None:
    found = await AuditTrail(database=bench.database).verify(**noted)
    fault: dict[str, Any] | None = found["fault"]
    return fault


async def fill(bench: Bench, count: int) -> None:
    def work(session: Session) -> None:
        for number in range(count):
            facts = {"dataset": f"d{number}", "snapshot": SNAPSHOT}
            append(session, Entry(action=Action.DATASET_ADDED, facts=facts, subjects={"by": "ada"}), NOW)

    await bench.database.run(work)


async def sql(bench: Bench, statement: str, **values: Any) -> None:
    await bench.database.run(lambda session: session.execute(text(statement), values))


# --- what is recorded --------------------------------------------------------------------


async def test_a_run_from_offer_to_release_is_recorded_with_what_left(bench: Bench) -> None:
    run = await bench.running(job())
    await bench.executions.finish(finish(run))
    accepted, started, released = await entries(bench)
    (approval,) = await bench.approvals.all()
    row = await bench.database.run(lambda session: session.get_one(SummaryRow, run.run_id))
    assert (accepted["action"], started["action"]) == ("offer_accepted", "execution_started")
    assert accepted["subjects"] == {"submitter": "ada"}
    assert accepted["facts"] == {
        "run": run.run_id,
        "job": run.job_id,
        "attempt": 1,
        "analysis": "allele-frequency@1.0",
        "dataset": "FI-lct",
        "directory": 1,
        "approval": approval.approval_id,
    }
    assert (started["facts"]["execution"], started["facts"]["snapshot"]) == (1, SNAPSHOT)
    assert released["action"] == "summary_released"
    assert released["facts"]["digest"] == f"sha256:{row.digest.hex()}"
    assert released["facts"]["decider"] == "rules"
    assert released["subjects"] == {"by": "disclosure-rules", "reason": "release class auto"}


@pytest.mark.parametrize(("choice", "action"), [(RELEASE, "summary_released"), (WITHHOLD, "summary_withheld")])
async def test_a_persons_decision_is_recorded_with_who_and_why(manual: Bench, choice: str, action: str) -> None:
    run = await manual.running(job())
    await manual.executions.finish(finish(run))
    assert "summary_released" not in await actions(manual)
    await manual.decide(run.run_id, choice, why="checked twice")
    last = (await entries(manual))[-1]
    assert (last["action"], last["facts"]["decider"]) == (action, "person")
    assert last["subjects"] == {"by": "checker-fi", "reason": "checked twice"}


async def test_a_summary_that_the_rules_keep_is_recorded_without_its_digest(bench: Bench) -> None:
    await sql(
        bench, "UPDATE datasets SET info = json_set(info, '$.people_by_sex.female', 1, '$.people_by_sex.male', 1)"
    )
    run = await bench.running(job())
    await bench.executions.finish(finish(run, collected(people=2, carriers=1, others=1)))
    last = (await entries(bench))[-1]
    assert (last["action"], last["facts"]["decider"], last["facts"]["digest"]) == ("summary_withheld", "rules", "")


async def test_a_declined_offer_is_recorded_with_its_reason(bench: Bench) -> None:
    await bench.offer(offer(job(submitter="eve")))
    (entry,) = await entries(bench)
    assert (entry["action"], entry["facts"]["reason"]) == ("offer_declined", "SUBMITTER_NOT_ADMITTED")
    assert (entry["facts"]["dataset"], entry["subjects"]) == ("FI-lct", {"submitter": "eve"})


async def test_what_is_no_job_at_all_is_recorded_and_cannot_fill_the_log(bench: Bench) -> None:
    await bench.offer(replace(offer(job()), payload=b"{", job_id="x" * 100_000))
    (entry,) = await entries(bench)
    assert entry["facts"]["reason"] == "JOB_INVALID"
    assert len(entry["body"]) < 1000


async def test_a_dataset_that_is_removed_is_recorded_with_its_snapshot(bench: Bench) -> None:
    datasets = Datasets(
        database=bench.database,
        state=bench.state,
        reporter=WireReporter("FI"),
        bells=bench.bells,
        clock=lambda: bench.now,
    )
    await datasets.remove("FI-lct")
    (entry,) = await entries(bench)
    assert (entry["action"], entry["facts"]) == ("dataset_removed", {"dataset": "FI-lct", "snapshot": SNAPSHOT})


async def test_an_entry_holds_nothing_that_a_person_or_a_dataset_wrote(manual: Bench) -> None:
    run = await manual.running(job())
    await manual.executions.finish(finish(run))
    await manual.decide(run.run_id, RELEASE, why="seen HG00171")
    for entry in await entries(manual):
        # Ids and digests may hold any letters up to f.
        words = re.sub("[0-9a-f-]{32,}", "", entry["body"])
        assert not re.search("ada|olga|HG00171|28365618|holder|checker", words)


# --- the policy --------------------------------------------------------------------------


def changes(bench: Bench) -> PolicyChanges:
    return PolicyChanges(book=PolicyBook(bench.state.policy_file), database=bench.database, clock=lambda: bench.now)


async def test_a_policy_is_recorded_once_when_it_comes_into_force(bench: Bench) -> None:
    policies = changes(bench)
    await policies.begin()
    await policies.begin()
    await policies.replace(OPEN_POLICY, "olga")
    await changes(bench).begin()
    found = await entries(bench)
    assert [entry["facts"]["policy"] for entry in found] == [policy_digest(policy_of(v)) for v in ({}, OPEN_POLICY)]
    assert found[1]["subjects"] == {"by": "olga"}


async def test_a_policy_changed_while_no_agent_ran_is_recorded_at_the_start(bench: Bench) -> None:
    await changes(bench).begin()
    bench.state.policy_file.write_text('[release]\nmode = "auto"\n')
    await changes(bench).begin()
    assert len(await entries(bench)) == 2


async def test_a_policy_that_cannot_be_recorded_does_not_come_into_force(bench: Bench) -> None:
    policies = changes(bench)
    await policies.begin()
    before = policies.view()
    await sql(bench, UNWRITABLE.format("audit_leaves"))
    with pytest.raises(IntegrityError):
        await policies.replace(OPEN_POLICY, "olga")
    assert policies.view() == before == changes(bench).view()


async def test_a_policy_that_cannot_be_written_is_recorded_as_not_in_force(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = changes(bench)
    await policies.begin()
    monkeypatch.setattr("node_agent.policy.book.store_policy", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        await policies.replace(OPEN_POLICY, "olga")
    assert (await entries(bench))[-1]["facts"]["policy"] == policies.view()["digest"]


# --- before the bytes leave --------------------------------------------------------------


@pytest.mark.parametrize("table", ["audit_leaves", "audit_nodes", "audit_subjects"])
async def test_if_the_log_cannot_be_written_nothing_is_released(manual: Bench, table: str) -> None:
    run = await manual.running(job())
    await manual.executions.finish(finish(run))
    # An odd number of entries, so that the next completes a subtree.
    await fill(manual, 1)
    events, before = await manual.events(), await entries(manual)
    await sql(manual, UNWRITABLE.format(table))
    with pytest.raises(IntegrityError):
        await manual.decide(run.run_id, RELEASE, why="fine")
    row = await manual.database.run(lambda session: session.get_one(SummaryRow, run.run_id))
    assert ((await manual.run(run.run_id)).state, row.decision) == ("AWAITING_RELEASE", "")
    assert (await manual.events(), await entries(manual)) == (events, before)
    await sql(manual, "DROP TRIGGER unwritable")
    await manual.decide(run.run_id, RELEASE, why="fine")
    assert (await entries(manual))[-1]["action"] == "summary_released"
    assert await verdict(manual) is None


async def test_if_the_log_cannot_be_written_the_rules_release_nothing_either(bench: Bench) -> None:
    run = await bench.running(job())
    events = await bench.events()
    await sql(bench, UNWRITABLE.format("audit_leaves"))
    with pytest.raises(IntegrityError):
        await bench.executions.finish(finish(run))
    assert await bench.database.run(lambda session: session.get(SummaryRow, run.run_id)) is None
    assert ((await bench.run(run.run_id)).state, await bench.events()) == ("RUNNING", events)


async def test_if_the_log_cannot_be_written_nothing_starts(bench: Bench) -> None:
    run = await bench.offer(offer(job()))
    await bench.step()
    await sql(bench, UNWRITABLE.format("audit_leaves"))
    with pytest.raises(IntegrityError):
        await bench.executions.claim(run.run_id, "worker-1")
    assert (await bench.run(run.run_id)).state == "STAGING"


async def test_when_the_bytes_leave_the_entry_that_lets_them_is_committed(bench: Bench) -> None:
    from node_agent.spool.uploader import Uploader

    seen: list[tuple[bytes, str]] = []

    class Stop(Exception):
        pass

    async def send(released: ReleasedSummary) -> None:
        last = (await entries(bench))[-1]
        seen.append((released.digest, last["facts"]["digest"]))
        raise Stop

    run = await bench.running(job())
    await bench.executions.finish(finish(run))
    with pytest.raises(Stop):
        await Uploader(database=bench.database, bells=bench.bells, clock=lambda: bench.now).run(send)
    ((left, recorded),) = seen
    assert recorded == f"sha256:{left.hex()}"


# --- verifying ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 9, 31])
async def test_an_untouched_log_of_any_size_verifies(bench: Bench, size: int) -> None:
    await fill(bench, size)
    assert await verdict(bench) is None


async def test_a_log_of_several_pages_verifies_and_its_change_is_found_in_the_second(bench: Bench) -> None:
    await fill(bench, PAGE + 5)
    assert await verdict(bench) is None
    await sql(
        bench, "UPDATE audit_leaves SET body = CAST(replace(body, 'd', 'D') AS BLOB) WHERE \"index\" = :i", i=PAGE + 2
    )
    assert await verdict(bench) == {"index": PAGE + 2, "fault": "the entry was changed"}


@pytest.mark.parametrize(
    ("statement", "first"),
    [
        ("UPDATE audit_leaves SET body = CAST(body || ' ' AS BLOB) WHERE \"index\" = 5", 5),
        ("UPDATE audit_leaves SET body = 'x' WHERE \"index\" = 5", 5),
        ("UPDATE audit_leaves SET at = 'never' WHERE \"index\" = 5", 5),
        ('UPDATE audit_leaves SET leaf_hash = zeroblob(32) WHERE "index" = 5', 5),
        ("UPDATE audit_leaves SET at = '2020-01-01 00:00:00.000000' WHERE \"index\" = 5", 5),
        ('DELETE FROM audit_leaves WHERE "index" = 5', 5),
        ('DELETE FROM audit_leaves WHERE "index" = 12', 12),
        ('UPDATE audit_nodes SET hash = zeroblob(32) WHERE level = 1 AND "index" = 2', 5),
        ('UPDATE audit_nodes SET hash = zeroblob(32) WHERE level = 3 AND "index" = 0', 7),
        ('DELETE FROM audit_nodes WHERE level = 2 AND "index" = 1', 7),
        ("INSERT INTO audit_nodes VALUES (5, 5, zeroblob(32))", 13),
        ('INSERT INTO audit_leaves SELECT -1, at, body, leaf_hash FROM audit_leaves WHERE "index" = 0', 13),
        ("UPDATE audit_subjects SET text = 'eve' WHERE \"index\" = 5", 5),
        ("UPDATE audit_subjects SET name = 'reason' WHERE \"index\" = 5", 5),
        ('UPDATE audit_subjects SET salt = zeroblob(32) WHERE "index" = 5', 5),
    ],
)
async def test_a_change_of_the_stored_log_is_found_at_its_first_wrong_entry(
    bench: Bench, statement: str, first: int
) -> None:
    await fill(bench, 13)
    await sql(bench, statement)
    fault = await verdict(bench)
    assert fault is not None
    assert fault["index"] == first


async def test_an_entry_rewritten_with_its_hash_is_found_by_the_tree_above(bench: Bench) -> None:
    await fill(bench, 13)
    # Quoted: the two letters alone may stand in an entry's random hashes too.
    told = next(e for e in await entries(bench) if e["index"] == 4)["body"]
    body = told.replace('"d4"', '"d9"').encode()
    assert body != told.encode()
    await sql(
        bench,
        'UPDATE audit_leaves SET body = :body, leaf_hash = :hash WHERE "index" = 4',
        body=body,
        hash=leaf_hash(body),
    )
    assert await verdict(bench) == {"index": 5, "fault": "the tree's hash at level 1 is wrong"}


async def test_a_log_rewritten_as_a_whole_is_found_with_a_root_noted_earlier(bench: Bench, tmp_path: Path) -> None:
    await fill(bench, 9)
    noted = await AuditTrail(database=bench.database).verify()
    await fill(bench, 4)
    assert await verdict(bench, size=9, root=noted["root"].upper()) is None
    for table in ("audit_leaves", "audit_nodes", "audit_subjects"):
        await sql(bench, f"DELETE FROM {table}")  # noqa: S608 - names of this test
    await fill(bench, 8)
    assert await verdict(bench) is None
    assert (await verdict(bench, size=9, root=noted["root"]) or {})["fault"].endswith("the last ones are gone")
    await sql(bench, "UPDATE audit_subjects SET text = text")
    await bench.database.run(lambda s: append(s, Entry(action=Action.DATASET_ADDED, facts={"dataset": "no"}), NOW))
    assert (await verdict(bench, size=9, root=noted["root"]) or {})["index"] == 0


async def test_a_noted_root_without_its_size_is_refused(bench: Bench) -> None:
    with pytest.raises(HansaError) as refused:
        await AuditTrail(database=bench.database).verify(root="00" * 32)
    assert refused.value.reason is Reason.MALFORMED


async def test_names_and_reasons_can_be_erased_and_the_log_still_verifies(bench: Bench) -> None:
    await fill(bench, 6)
    before = await AuditTrail(database=bench.database).verify()
    assert await bench.database.run(lambda session: erase(session, index=3)) == [3]
    assert await AuditTrail(database=bench.database).verify() == before
    shown = await entries(bench)
    assert [entry["subjects"]["by"] for entry in shown] == ["ada", "ada", "ada", None, "ada", "ada"]


async def test_the_same_name_leaves_another_hash_in_every_entry(bench: Bench) -> None:
    await fill(bench, 5)
    assert len({json.loads(entry["body"])["subjects"]["by"] for entry in await entries(bench)}) == 5


async def test_every_entry_is_proved_from_the_stored_hashes(bench: Bench) -> None:
    await fill(bench, 21)

    def check(session: Session) -> None:
        root, stored = root_of(session, 21), leaves(session, 0, 21)
        for index in range(21):
            proof = prove_inclusion(session, index, 21)
            assert verify_inclusion(stored[index].leaf_hash, index, 21, proof, root)
            grown = prove_consistency(session, index, 21)
            assert verify_consistency(index, 21, grown, old_root=root_of(session, index), new_root=root)

    await bench.database.run(check)


# --- the store ---------------------------------------------------------------------------


def test_the_nodes_migrations_make_exactly_the_tables_of_the_models(tmp_path: Path) -> None:
    Database.open(tmp_path / "node.db").close()
    engine = open_engine(tmp_path / "node.db")
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


async def test_a_store_from_before_the_log_begins_with_an_empty_one(bench: Bench) -> None:
    assert await bench.database.run(size_of) == 0
    assert await verdict(bench) is None
