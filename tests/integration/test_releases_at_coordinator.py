"""What the coordinator makes of releases: it believes signatures, and keeps what proves them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.domain.records import JobRecord
from coordinator.services.evidence import Evidence, job_evidence, summary_content
from coordinator.services.jobs import Asker, job_result
from coordinator.services.purging import purge_results
from coordinator.services.sessions import Sessions
from coordinator.store.audit import AuditRepository
from coordinator.store.job_models import SUMMARIES
from coordinator.store.nodes import NodeRepository
from coordinator.store.paging import Page
from coordinator.store.statements import StatementRepository
from hansa.contract import envelope
from hansa.contract.digests import digest
from hansa.contract.envelope import DECISION_TYPE, Signed
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import parse_job
from hansa.contract.raw_keys import agreement_key, key_text
from hansa.contract.sealing import SealContext, seal
from hansa.contract.states import JobState
from hansa.sdk.evidence import RESULT_FILE, summary_file
from hansa.sdk.verification import Verifier, verify_evidence
from hansa.v1 import node_service_pb2 as wire
from tests.support.job_world import ADA, AUDITOR, BOB, NODES, OPERATOR, JobWorld, open_world, released
from tests.support.scripted_node import NodeStore, PlainNode, release, report, run_at

OTHER_JOB = "0190a5a0-0000-7000-8000-000000000002"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[JobWorld]:
    with open_world(f"sqlite:///{tmp_path / 'c.db'}") as made:
        yield made
        await made.desk.settled()


@pytest.fixture
async def nodes(world: JobWorld) -> AsyncIterator[dict[str, PlainNode]]:
    sessions = Sessions(world.desk, lambda: b"n" * 32)
    attached = {name: PlainNode(sessions, name, NodeStore(uuid=name)) for name in NODES}
    for node in attached.values():
        await node.attach()
        await node.heartbeat()
    yield attached
    await sessions.close()


async def submitted(world: JobWorld, nodes: dict[str, PlainNode], **changes: Any) -> JobRecord:
    """Submit a job, and have each node take its offer."""
    job = await world.submit(**changes)
    for node in nodes.values():
        await node.take_command()
    return job


async def let_out(world: JobWorld, node: PlainNode, job: JobRecord, content: bytes) -> Signed:
    """Let ``node`` release ``content`` rightly, and upload it."""
    name = node.store.uuid
    statement = await world.statement(name, job, content)
    await node.tell(release(statement, content), report(run_at(job.job_id, name), "RELEASED", execution=1))
    await world.upload(name, job, content)
    return statement


async def refused(node: PlainNode, *bodies: wire.EventBody) -> Reason | None:
    """Send events, the last of which ends the session; return what the node was told."""
    for body in bodies:
        seq = node.store.events.append(body)
        await node.send(wire.NodeFrame(event=node.store.events.event(seq, node.epoch)))
    return await node.ended()


def standing(world: JobWorld, node: str = "FI") -> tuple[str, str]:
    found = world.database.run_sync(lambda s: NodeRepository(s).get(node))
    return found.state.value, found.reason


def acts(world: JobWorld) -> list[tuple[str, str]]:
    entries = world.database.run_sync(lambda s: AuditRepository(s).page(Page(100)).items)
    return [(entry.action, entry.subject) for entry in entries]


def stored(world: JobWorld, job: JobRecord) -> list[str]:
    return sorted(world.database.run_sync(lambda s: StatementRepository(s).of_job(job.job_id)))


async def evidence(world: JobWorld, job: JobRecord, asker: Asker = ADA) -> dict[str, bytes]:
    work = partial(
        job_evidence, job_id=job.job_id, asker=asker, turn=world.desk.turn(), logs=lambda _session, _job, _now: {}
    )
    found: Evidence = await world.desk.read(work)
    contents = {
        name: await world.desk.read(partial(summary_content, run_id=run)) for name, run in found.summaries.items()
    }
    return {**found.files, **contents}


# --- statements --------------------------------------------------------------------------


async def test_a_statement_is_stored_logged_and_named_in_the_result(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await submitted(world, nodes)
    statements = {name: await let_out(world, node, job, released()) for name, node in nodes.items()}
    assert (await world.job(job.job_id)).state is JobState.COMPLETED
    found = await world.desk.read(partial(job_result, job_id=job.job_id, asker=ADA, turn=world.desk.turn()))
    named = {run["node"]: run["statement"] for run in json.loads(found.content)["nodes"]}
    assert named == {name: digest(signed.payload) for name, signed in statements.items()}
    assert {("summary_released", f"{job.job_id} {one}") for one in named.values()} <= set(acts(world))


async def test_a_result_goes_when_its_time_is_over_and_no_other_takes_its_place(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await submitted(world, nodes)
    for node in nodes.values():
        await let_out(world, node, job, released())
    asked = partial(job_result, job_id=job.job_id, asker=ADA, turn=world.desk.turn())
    stored = {name: summary for name, summary in (await evidence(world, job)).items() if "summar" in name}
    assert all(stored.values())

    def purge(session: Session, days: int) -> int:
        return purge_results(session, world.clock() + timedelta(days=days), kept=timedelta(days=30))

    assert await world.desk.read(partial(purge, days=30)) == 0  # not a moment too early
    assert (await world.desk.read(asked)).content
    assert await world.desk.read(partial(purge, days=31)) == 1
    for gone in (world.desk.read(asked), evidence(world, job)):
        with pytest.raises(HansaError) as refused:
            await gone
        assert refused.value.reason is Reason.RESULT_PURGED
    assert await world.desk.read(lambda session: set(session.scalars(select(SUMMARIES.c.content)))) == {b""}
    assert all(run.statement for run in (await world.job(job.job_id)).runs)
    assert ("results_purged", "1 jobs") in acts(world)
    assert await world.desk.read(partial(purge, days=31)) == 0


FORGERIES: dict[str, dict[str, Any]] = {
    "another node's key": {"key": "ES"},
    "the coordinator's key": {"key": "_coordinator"},
    "another node": {"node": "ES"},
    "another job": {"job_id": OTHER_JOB},
    "another job's bytes": {"job_digest": digest(b"x")},
    "another round": {"round": 2},
    "another run": {"run_id": "0" * 32},
    "another attempt": {"attempt": 2},
    "another execution": {"execution": 7},
    "another analysis": {"analysis": {"name": "allele-frequency", "version": "1.0", "digest": digest(b"x")}},
    "another dataset": {"dataset": "ES-aisnp"},
    "another snapshot": {"snapshot": digest(b"x")},
    "another federation": {"federation": "other"},
    "another reader": {"recipient_key": "A" * 43 + "="},
    "another kind": {"subject": "sealed-summary"},
    "too few people": {"release_class": "manual"},
    "an unsigned decision": {"deciders": [{"by": "checker-fi"}]},
    "long after": {"released_at": "2027-01-01T00:00:00Z"},
}


@pytest.mark.parametrize("what", sorted(FORGERIES))
async def test_a_statement_that_does_not_hold_is_refused_logged_and_sets_its_node_apart(
    world: JobWorld, nodes: dict[str, PlainNode], what: str
) -> None:
    job = await submitted(world, nodes)
    changes = dict(FORGERIES[what])
    if "key" in changes:
        changes["key"] = world.keys[changes["key"]]
    statement = await world.statement("FI", job, released(), **changes)
    told = {"run_id": run_at(job.job_id, "FI"), "attempt": 1, "execution": 1}
    assert await refused(nodes["FI"], release(statement, released(), **told)) is Reason.STATEMENT_INVALID
    assert standing(world) == ("QUARANTINED", "a release that does not hold: STATEMENT_INVALID")
    assert any(action == "release_refused" and job.job_id in subject for action, subject in acts(world))
    assert stored(world, job) == []
    assert (await world.job(job.job_id)).runs[0].statement == ""
    assert standing(world, "ES")[0] == "ACTIVE"


async def test_an_unsigned_release_is_refused(world: JobWorld, nodes: dict[str, PlainNode]) -> None:
    job = await submitted(world, nodes)
    statement = await world.statement("FI", job, released())
    body = release(statement, released())
    body.summary_released.ClearField("statement")
    assert await refused(nodes["FI"], body) is Reason.STATEMENT_INVALID
    assert standing(world)[0] == "QUARANTINED"


async def test_a_signature_made_for_another_purpose_is_refused(world: JobWorld, nodes: dict[str, PlainNode]) -> None:
    job = await submitted(world, nodes)
    payload = (await world.statement("FI", job, released())).payload
    signed = envelope.sign(DECISION_TYPE, payload, key_id="FI", key=world.keys["FI"])
    assert await refused(nodes["FI"], release(signed, released())) is Reason.STATEMENT_INVALID


async def test_a_statement_of_other_bytes_than_were_announced_is_refused(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await submitted(world, nodes)
    statement = await world.statement("FI", job, released(ac=41))
    assert await refused(nodes["FI"], release(statement, released(ac=42))) is Reason.STATEMENT_INVALID


async def test_who_says_released_and_has_signed_nothing_is_set_apart(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await submitted(world, nodes)
    await world.upload("FI", job, released())
    said = report(run_at(job.job_id, "FI"), "RELEASED", execution=1)
    assert await refused(nodes["FI"], said) is Reason.STATEMENT_INVALID
    assert standing(world)[0] == "QUARANTINED"
    assert not (await world.job(job.job_id)).runs[0].stored, "a summary without a statement is nothing"


async def test_a_node_that_left_the_directory_signs_for_nobody(world: JobWorld, nodes: dict[str, PlainNode]) -> None:
    job = await submitted(world, nodes)
    directory = world.trust.directory
    world.trust.change(
        nodes=tuple(node for node in directory.nodes if node.node != "FI"),
        witnesses=tuple(node for node in directory.witnesses if node != "FI"),
    )
    await world.publish()
    statement = await world.statement("FI", job, released())
    assert await refused(nodes["FI"], release(statement, released())) is Reason.STATEMENT_INVALID


async def test_two_different_statements_for_one_run_set_the_node_apart_and_the_first_stands(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await submitted(world, nodes)
    first = await world.statement("FI", job, released(ac=41))
    await nodes["FI"].tell(release(first, released(ac=41)), release(first, released(ac=41)))
    second = await world.statement("FI", job, released(ac=42))
    assert await refused(nodes["FI"], release(second, released(ac=42))) is Reason.SUMMARY_CONFLICT
    assert standing(world) == ("QUARANTINED", "a release that does not hold: SUMMARY_CONFLICT")
    kept = world.database.run_sync(lambda s: StatementRepository(s).of_job(job.job_id))["FI"]
    assert kept.envelope == envelope.to_json(first)


async def test_an_upload_of_other_bytes_than_were_signed_sets_the_node_apart(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await submitted(world, nodes)
    statement = await world.statement("FI", job, released(ac=41))
    await nodes["FI"].tell(release(statement, released(ac=41)))
    with pytest.raises(HansaError) as conflict:
        await world.upload("FI", job, released(ac=42))
    assert conflict.value.reason is Reason.SUMMARY_CONFLICT
    assert standing(world)[0] == "QUARANTINED"


async def test_a_statement_of_other_bytes_than_were_uploaded_sets_the_node_apart(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await submitted(world, nodes)
    await world.upload("FI", job, released(ac=41))
    statement = await world.statement("FI", job, released(ac=42))
    await refused(
        nodes["FI"],
        release(statement, released(ac=42)),
        report(run_at(job.job_id, "FI"), "RELEASED", execution=1),
    )
    assert standing(world)[0] == "QUARANTINED"


# --- sealed jobs and evidence ------------------------------------------------------------


async def sealed_job(world: JobWorld, nodes: dict[str, PlainNode]) -> JobRecord:
    key = key_text(world.trust.recipients["ada"].public_key())
    job = await world.submit(recipient_key=key)
    for place, (name, node) in enumerate(nodes.items()):
        payload = (await node.take_command()).offer.job.payload
        assert parse_job(payload).recipient_key == key
        context = SealContext(run_at(job.job_id, name), 1, digest(payload))
        await let_out(world, node, job, seal(released(ac=40 + place), agreement_key(key), context))
    return await world.job(job.job_id)


async def test_sealed_summaries_are_kept_for_their_reader_and_not_combined(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await sealed_job(world, nodes)
    assert job.state is JobState.COMPLETED
    files = await evidence(world, job)
    result = json.loads(files[RESULT_FILE])
    assert (result["sealed"], result["variants"]) == (True, [])
    assert [run["state"] for run in result["nodes"]] == ["RELEASED"] * 3
    assert not any(b"arrays" in files[summary_file(name)] for name in NODES)
    verifier = Verifier(root=world.trust.root, recipient_key=world.trust.recipients["ada"])
    found = verify_evidence(files, verifier, job.job_id)
    assert [step.name for step in found.failed] == ["audit logs"], "no witness has seen the log here"
    assert found.result is not None
    (row,) = json.loads(found.result)["variants"]
    assert row["pooled"]["ac"] == 40 + 41 + 42


async def test_what_is_no_sealed_summary_is_not_taken_for_a_sealed_job(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await submitted(world, nodes, recipient_key=key_text(world.trust.recipients["ada"].public_key()))
    with pytest.raises(HansaError) as refusal:
        await world.upload("FI", job, released())
    assert refusal.value.reason is Reason.SUMMARY_CORRUPT


async def test_the_evidence_of_a_job_verifies_from_the_root_alone(world: JobWorld, nodes: dict[str, PlainNode]) -> None:
    job = await submitted(world, nodes, quorum=2)
    for name in ("FI", "ES"):
        await let_out(world, nodes[name], job, released())
    await nodes["IT"].tell(report(run_at(job.job_id, "IT"), "DECLINED", reason="NODE_BUSY"))
    files = await evidence(world, job)
    assert hashlib.sha256(files[summary_file("FI")]).digest() == hashlib.sha256(released()).digest()
    report_ = verify_evidence(files, Verifier(root=world.trust.root), job.job_id)
    assert [(step.name, step.pending) for step in report_.failed] == [("audit logs", True)]
    assert (report_.answered, report_.silent) == (("FI", "ES"), {"IT": "DECLINED"})


async def test_only_the_submitter_gets_summaries_and_only_auditors_get_the_rest(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await submitted(world, nodes)
    with pytest.raises(HansaError) as early:
        await evidence(world, job)
    assert early.value.reason is Reason.JOB_NOT_ENDED
    for node in nodes.values():
        await let_out(world, node, job, released())
    audited = await evidence(world, job, AUDITOR)
    assert not any(name.startswith("summaries/") for name in audited)
    assert json.loads(audited[RESULT_FILE])["variants"] == []
    assert json.loads((await evidence(world, job))[RESULT_FILE])["variants"] != []
    verifier = replace(Verifier(root=world.trust.root), with_summaries=False)
    assert [step.name for step in verify_evidence(audited, verifier, job.job_id).failed] == ["audit logs"]
    for asker, reason in ((BOB, Reason.JOB_UNKNOWN), (OPERATOR, Reason.PERMISSION_DENIED)):
        with pytest.raises(HansaError) as refusal:
            await evidence(world, job, asker)
        assert refusal.value.reason is reason
