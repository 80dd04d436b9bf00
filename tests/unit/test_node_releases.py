"""What a node signs when it lets a summary out, and who has to agree."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from hansa.contract import envelope
from hansa.contract.decision import ReleaseDecision
from hansa.contract.digests import digest
from hansa.contract.directory import Role
from hansa.contract.envelope import DECISION_TYPE, STATEMENT_TYPE, VOTE_TYPE, Signed, from_json
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import parse_job
from hansa.contract.raw_keys import key_text
from hansa.contract.receipt import Expected, verified_statement
from hansa.contract.release import ReleaseClass
from hansa.contract.sealing import BUCKET_BYTES, OVERHEAD_BYTES, SealContext, open_sealed
from hansa.contract.statement import Statement, parse_statement
from hansa.v1 import node_service_pb2
from node_agent.airlock.released import NotReleasedError, ReleasedSummary, released_summary
from node_agent.audit.log import leaves
from node_agent.executions import Finish, Outcome
from node_agent.spool.uploader import Uploader
from node_agent.store.models import EventRow, ReleaseDecisionRow, RunApprovalRow, RunRow
from tests.support.agent import NODE, OPEN_POLICY, Bench, collected, job, make_bench, open_bench
from tests.support.trust_world import TrustWorld


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    yield made
    made.database.close()


def with_mode(folder: Path, mode: str) -> Bench:
    return make_bench(folder, {**OPEN_POLICY, "release": {"mode": mode}})


@pytest.fixture(params=["manual", "dual"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def finished(bench: Bench, **changes: Any) -> RunRow:
    """Return a run whose summary has come to the airlock."""
    run = await bench.running(job(**changes))
    await bench.executions.finish(
        Finish(run_id=run.run_id, execution=run.execution, outcome=Outcome.SUMMARY, summary=collected())
    )
    return await bench.run(run.run_id)


async def payload_of(bench: Bench, run: RunRow) -> bytes:
    return await bench.database.run(lambda session: session.get_one(RunRow, run.run_id).payload)


async def statement_of(bench: Bench, run: RunRow) -> Statement:
    row = await bench.summary(run.run_id)
    assert row.statement is not None
    return parse_statement(from_json(row.statement).payload)


async def held_by_its_receiver(bench: Bench, run: RunRow) -> Statement:
    """Return the statement as who receives it reads it; fail if it does not hold."""
    row, payload = await bench.summary(run.run_id), await payload_of(bench, run)
    key = bench.world.directory.node(NODE)
    assert key is not None
    assert row.statement is not None
    expected = Expected(payload=payload, spec=parse_job(payload), node=NODE, attempt=1)
    return verified_statement(from_json(row.statement), key=key.signing_key, expected=expected)


async def released_events(bench: Bench) -> list[node_service_pb2.SummaryReleased]:
    def read(session: Session) -> list[bytes]:
        return list(session.scalars(select(EventRow.body).order_by(EventRow.seq)))

    bodies = [node_service_pb2.EventBody.FromString(body) for body in await bench.database.run(read)]
    return [body.summary_released for body in bodies if body.WhichOneof("body") == "summary_released"]


# --- the statement -----------------------------------------------------------------------


async def test_a_release_is_signed_over_what_leaves_and_all_that_it_rests_on(bench: Bench) -> None:
    run = await finished(bench)
    row = await bench.summary(run.run_id)
    assert run.state == "RELEASED"
    assert row.outgoing == row.summary
    statement = await held_by_its_receiver(bench, run)
    release = statement.predicate
    assert statement.subject[0].digest.sha256 == hashlib.sha256(row.outgoing or b"").hexdigest()
    assert (release.execution, release.release_class) == (1, ReleaseClass.AUTO)
    assert [decider.by for decider in release.deciders] == ["disclosure-rules"]
    approved = await bench.database.run(lambda s: s.scalars(select(RunApprovalRow.digest)).all())
    assert release.approvals == tuple(approved)
    leaf = (await bench.database.run(lambda s: leaves(s, release.log.index, release.log.index + 1)))[0]
    assert leaf.leaf_hash.hex() == release.log.leaf_hash
    assert f'"digest":"sha256:{statement.subject[0].digest.sha256}"'.encode() in leaf.body


@pytest.mark.parametrize("back", [timedelta(0), timedelta(seconds=400), timedelta(days=1)])
async def test_what_is_released_while_the_clock_is_set_back_holds_where_it_is_received(
    bench: Bench, back: timedelta
) -> None:
    run = await bench.running(job())
    bench.now -= back
    await bench.executions.finish(
        Finish(run_id=run.run_id, execution=run.execution, outcome=Outcome.SUMMARY, summary=collected())
    )
    await held_by_its_receiver(bench, run)


async def test_a_clock_that_was_set_ahead_past_the_deadline_lets_nothing_out_before_that_is_noticed(
    bench: Bench,
) -> None:
    run = await bench.running(job())
    bench.now += timedelta(days=1)
    await bench.executions.finish(
        Finish(run_id=run.run_id, execution=run.execution, outcome=Outcome.SUMMARY, summary=collected())
    )
    ended = await bench.run(run.run_id)
    assert (ended.state, ended.reason) == ("EXPIRED", "DEADLINE_PASSED")
    assert await released_events(bench) == []


async def test_a_decision_after_the_deadline_is_refused_before_that_is_noticed(tmp_path: Path) -> None:
    manual = with_mode(tmp_path / "manual", "manual")
    run = await finished(manual)
    manual.now += timedelta(days=1)
    with pytest.raises(HansaError) as refused:
        await manual.decide(run.run_id, "RELEASE")
    assert refused.value.reason is Reason.RELEASE_CONFLICT
    await manual.step()
    assert (await manual.run(run.run_id)).state == "EXPIRED"
    manual.database.close()


async def test_the_checks_in_a_statement_say_rule_and_outcome_and_no_count(bench: Bench) -> None:
    run = await finished(bench)
    row = await bench.summary(run.run_id)
    assert all("count" in check for check in row.checks), "the node's own people see counts"
    checks = (await statement_of(bench, run)).predicate.checks
    assert len(checks) == len(row.checks)
    assert all(set(check.model_dump()) == {"rule", "outcome"} for check in checks)


async def test_the_event_the_upload_and_the_store_have_the_same_bytes_after_each_restart(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    run = await finished(bench)
    row = await bench.summary(run.run_id)
    seen: list[tuple[bytes, bytes, bytes]] = []
    for _ in range(3):
        sent: list[ReleasedSummary] = []

        async def send(released: ReleasedSummary, to: list[ReleasedSummary] = sent) -> None:
            to.append(released)
            raise HansaError(Reason.COORDINATOR_UNREACHABLE)  # the answer is lost

        spool = Uploader(database=bench.database, bells=bench.bells, clock=partial(getattr, bench, "now"))
        task = asyncio.create_task(spool.run(send))
        async with asyncio.timeout(20):
            while not sent:  # noqa: ASYNC110 - what is waited for is in a thread
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        (event,) = await released_events(bench)
        seen.append((sent[0].summary, event.summary_digest, event.statement.SerializeToString(deterministic=True)))
        bench.database.close()
        bench = open_bench(bench.state, bench.world)
    assert len(set(seen)) == 1
    assert seen[0][0] == row.outgoing
    assert seen[0][1] == hashlib.sha256(seen[0][0]).digest()
    assert event.statement.payload == from_json(row.statement or b"").payload
    bench.database.close()


async def test_bytes_that_the_statement_does_not_speak_of_never_leave(bench: Bench) -> None:
    one, other = await finished(bench), await finished(bench)
    row, stranger = await bench.summary(one.run_id), await bench.summary(other.run_id)
    assert released_summary(row).summary == row.outgoing
    for name, value in (
        ("outgoing", (row.outgoing or b"") + b" "),
        ("outgoing", None),
        ("statement", None),
        ("statement", stranger.statement),
        ("statement", b"{}"),
        ("execution", 2),
        ("decision", ""),
        ("decision", "WITHHOLD"),
    ):
        kept = getattr(row, name)
        setattr(row, name, value)
        with pytest.raises(NotReleasedError):
            released_summary(row)
        setattr(row, name, kept)


@pytest.mark.parametrize("missing", ["approval", "trust", "signer"])
async def test_where_no_statement_can_be_made_nothing_is_released(bench: Bench, missing: str) -> None:
    run = await bench.running(job())
    events, gate = await bench.events(), bench.executions.gate
    notary = {
        "approval": replace(gate.notary, approvals_of=lambda _session, _run: ()),
        "trust": replace(gate.notary, trust=lambda: None),
        "signer": replace(gate.notary, signer=_Broken()),
    }[missing]
    executions = replace(bench.executions, gate=replace(gate, notary=notary))
    with pytest.raises((HansaError, OSError)):
        await executions.finish(
            Finish(run_id=run.run_id, execution=run.execution, outcome=Outcome.SUMMARY, summary=collected())
        )
    assert (await bench.run(run.run_id)).state == "RUNNING"
    assert await bench.events() == events
    assert await released_events(bench) == []


class _Broken:
    def sign(self, payload_type: str, payload: bytes) -> Signed:
        raise OSError("the key is gone")


async def test_where_the_log_cannot_be_written_nothing_is_signed(bench: Bench) -> None:
    run = await bench.running(job())
    trigger = "CREATE TRIGGER no BEFORE INSERT ON audit_leaves BEGIN SELECT RAISE(ABORT, 'full'); END"
    await bench.database.run(lambda session: session.connection().exec_driver_sql(trigger).close())
    with pytest.raises(IntegrityError):
        await bench.executions.finish(
            Finish(run_id=run.run_id, execution=run.execution, outcome=Outcome.SUMMARY, summary=collected())
        )
    assert await released_events(bench) == []


# --- sealing -----------------------------------------------------------------------------


async def test_a_sealed_summary_leaves_as_ciphertext_that_only_its_reader_opens(bench: Bench) -> None:
    key = bench.world.recipients["ada"]
    run = await finished(bench, recipient_key=key_text(key.public_key()))
    row, statement = await bench.summary(run.run_id), await statement_of(bench, run)
    sent = released_summary(row).summary
    assert statement.subject[0].name == "sealed-summary"
    assert (len(sent) - OVERHEAD_BYTES) % BUCKET_BYTES == 0
    assert b"arrays" not in sent
    context = SealContext(run.run_id, 1, digest(await payload_of(bench, run)))
    assert open_sealed(sent, key, context) == row.summary
    assert (await released_events(bench))[0].summary_digest == hashlib.sha256(sent).digest()
    for wrong in (replace(context, attempt=2), replace(context, run_id="0" * 32), replace(context, job_digest="x")):
        with pytest.raises(HansaError) as refused:
            open_sealed(sent, key, wrong)
        assert refused.value.reason is Reason.SEALED_INVALID


# --- who decides -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "policy", "people"),
    [("auto", "manual", 1), ("manual", "auto", 1), ("dual", "manual", 2), ("auto", "dual", 2), ("dual", "auto", 2)],
)
async def test_the_stricter_of_job_and_policy_says_how_many_people_look(
    tmp_path: Path, asked: str, policy: str, people: int
) -> None:
    bench = with_mode(tmp_path, policy)
    run = await finished(bench, release_class=ReleaseClass(asked))
    for by in ("checker-fi", "checker2-fi")[:people]:
        assert (await bench.run(run.run_id)).state == "AWAITING_RELEASE"
        await bench.decide(run.run_id, "RELEASE", by=by)
    assert (await bench.run(run.run_id)).state == "RELEASED"
    release = (await statement_of(bench, run)).predicate
    signed = await bench.database.run(lambda s: s.scalars(select(ReleaseDecisionRow)).all())
    assert {(d.by, d.decision) for d in release.deciders} == {(row.checker, row.digest) for row in signed}
    assert len(release.deciders) == people
    bench.database.close()


async def test_a_policy_that_became_stricter_holds_for_what_waits_already(tmp_path: Path) -> None:
    bench = with_mode(tmp_path, "manual")
    run = await finished(bench)
    release = bench.policy.release.model_copy(update={"mode": "dual"})
    bench.policy = bench.policy.model_copy(update={"release": release})
    assert (await bench.decide(run.run_id, "RELEASE")).state == "AWAITING_RELEASE"
    assert (await bench.decide(run.run_id, "RELEASE", by="checker2-fi")).state == "RELEASED"
    bench.database.close()


async def test_one_person_counts_once_however_often_they_sign(tmp_path: Path) -> None:
    bench = with_mode(tmp_path, "dual")
    run = await finished(bench)
    for _ in range(3):
        assert (await bench.decide(run.run_id, "RELEASE")).state == "AWAITING_RELEASE"
    with pytest.raises(HansaError) as refused:
        await bench.decide(run.run_id, "WITHHOLD")
    assert refused.value.reason is Reason.RELEASE_CONFLICT
    bench.database.close()


@pytest.mark.parametrize("change", [{"roles": (Role.AUDITOR,)}, {"nodes": ("ES",)}, {"name": "gone"}])
async def test_the_decision_of_a_checker_who_was_removed_since_counts_no_more(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    bench = with_mode(tmp_path, "dual")
    run = await finished(bench)
    await bench.decide(run.run_id, "RELEASE")
    people = bench.world.directory.people
    bench.trust_changes(people=tuple(p.model_copy(update=change) if p.name == "checker-fi" else p for p in people))
    assert (await bench.decide(run.run_id, "RELEASE", by="checker2-fi")).state == "AWAITING_RELEASE"
    assert await released_events(bench) == []
    bench.trust_changes(people=people)
    assert (await bench.decide(run.run_id, "RELEASE", by="checker2-fi")).state == "RELEASED"
    bench.database.close()


async def test_one_withhold_keeps_the_summary_whatever_others_say(tmp_path: Path) -> None:
    bench = with_mode(tmp_path, "dual")
    run = await finished(bench)
    await bench.decide(run.run_id, "RELEASE")
    assert (await bench.decide(run.run_id, "WITHHOLD", by="checker2-fi")).state == "WITHHELD"
    with pytest.raises(HansaError) as refused:
        await bench.decide(run.run_id, "RELEASE", by="checker2-fi")
    assert refused.value.reason is Reason.RELEASE_CONFLICT
    assert await released_events(bench) == []
    bench.database.close()


@pytest.mark.parametrize(
    ("by", "reason"),
    [
        ("ada", Reason.PERMISSION_DENIED),  # the submitter, no checker
        ("operator-fi", Reason.PERMISSION_DENIED),
        ("holder-fi", Reason.PERMISSION_DENIED),
        ("checker-es", Reason.PERMISSION_DENIED),  # of another node
        ("op1", Reason.PERMISSION_DENIED),
    ],
)
async def test_only_an_output_checker_of_this_node_decides(tmp_path: Path, mode: str, by: str, reason: Reason) -> None:
    bench = with_mode(tmp_path, mode)
    run = await finished(bench)
    with pytest.raises(HansaError) as refused:
        await bench.decide(run.run_id, "RELEASE", by=by)
    assert refused.value.reason is reason
    assert (await bench.run(run.run_id)).state == "AWAITING_RELEASE"
    bench.database.close()


async def test_nobody_releases_for_their_own_job(tmp_path: Path) -> None:
    bench = with_mode(tmp_path, "manual")
    _make_checker(bench, bench.world, "ada")
    run = await finished(bench, directory_version=bench.world.directory.version)
    with pytest.raises(HansaError) as refused:
        await bench.decide(run.run_id, "RELEASE", by="ada")
    assert refused.value.reason is Reason.SELF_APPROVAL
    bench.database.close()


def _make_checker(bench: Bench, world: TrustWorld, name: str) -> None:
    people = tuple(
        person.model_copy(update={"roles": (*person.roles, Role.OUTPUT_CHECKER), "nodes": (NODE,)})
        if person.name == name
        else person
        for person in world.directory.people
    )
    bench.trust_changes(people=people)


@pytest.mark.parametrize(
    "change",
    [
        {"summary_digest": "sha256:" + "0" * 64},
        {"run_id": "0" * 32},
        {"node": "ES"},
        {"checker": "checker2-fi"},
        {"payload_type": VOTE_TYPE},
        {"payload_type": STATEMENT_TYPE},
        {"key": "checker2-fi"},
        {"reason": "   "},
    ],
)
async def test_a_decision_on_something_else_or_signed_otherwise_is_none(tmp_path: Path, change: dict[str, str]) -> None:
    bench = with_mode(tmp_path, "manual")
    run = await finished(bench)
    row = await bench.summary(run.run_id)
    values: dict[str, Any] = {
        "node": NODE,
        "run_id": run.run_id,
        "summary_digest": f"sha256:{row.digest.hex()}",
        "decision": "RELEASE",
        "reason": "fine",
        "checker": "checker-fi",
        "at": bench.now,
    }
    kind, key = change.get("payload_type", DECISION_TYPE), change.get("key", "checker-fi")
    made = ReleaseDecision(**{**values, **{name: text for name, text in change.items() if name in values}})
    signed = envelope.sign(kind, made.to_bytes(), key_id="checker-fi", key=bench.world.keys[key])
    with pytest.raises(HansaError) as refused:
        await bench.airlock.decide(run.run_id, "RELEASE", signed)
    assert refused.value.reason is Reason.DECISION_INVALID
    assert (await bench.run(run.run_id)).state == "AWAITING_RELEASE"
    bench.database.close()


async def test_a_decision_to_withhold_does_not_serve_to_release(tmp_path: Path) -> None:
    bench = with_mode(tmp_path, "manual")
    run = await finished(bench)
    row = await bench.summary(run.run_id)
    made = ReleaseDecision(
        node=NODE,
        run_id=run.run_id,
        summary_digest=f"sha256:{row.digest.hex()}",
        decision="WITHHOLD",
        reason="no",
        checker="checker-fi",
        at=bench.now,
    )
    key = bench.world.keys["checker-fi"]
    signed = envelope.sign(DECISION_TYPE, made.to_bytes(), key_id="checker-fi", key=key)
    with pytest.raises(HansaError) as refused:
        await bench.airlock.decide(run.run_id, "RELEASE", signed)
    assert refused.value.reason is Reason.DECISION_INVALID
    bench.database.close()


async def test_the_log_names_each_checker_where_it_can_be_erased(tmp_path: Path) -> None:
    bench = with_mode(tmp_path, "dual")
    run = await finished(bench)
    await bench.decide(run.run_id, "RELEASE", why="large counts")
    await bench.decide(run.run_id, "RELEASE", by="checker2-fi", why="agreed")
    found = await bench.database.run(lambda s: leaves(s, 0, 100))
    decided = [leaf for leaf in found if b'"action":"release_decided"' in leaf.body]
    assert [dict(leaf.subjects) for leaf in decided] == [
        {"by": "checker-fi", "reason": "large counts"},
        {"by": "checker2-fi", "reason": "agreed"},
    ]
    assert b'"action":"summary_released"' in found[-1].body
    assert not any(b"checker" in leaf.body for leaf in found)
    bench.database.close()
