"""What the coordinator checks of a signed job, and what one submission stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coordinator.services.nodes import Act, revoke_node, suspend_node
from coordinator.store.audit import AuditRepository
from coordinator.store.catalogue import Dataset, DatasetRepository
from coordinator.store.outboxes import CommandRepository
from coordinator.store.paging import Page
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId, run_id
from hansa.contract.states import JobState, RunState
from hansa.v1 import node_service_pb2 as wire
from tests.support.job_world import BUNDLE_DIGEST, NODES, START, JobWorld, open_world, snapshot


@pytest.fixture
def world(tmp_path: Path) -> Iterator[JobWorld]:
    with open_world(f"sqlite:///{tmp_path}/c.db") as made:
        yield made


def pending(world: JobWorld, node: str) -> list[wire.CommandBody]:
    stored = world.database.run_sync(lambda s: CommandRepository(s).pending(node, after=0, limit=100))
    return [wire.CommandBody.FromString(command.body) for command in stored]


async def refusal(world: JobWorld, **changes: Any) -> HansaError:
    with pytest.raises(HansaError) as caught:
        await world.submit(**changes)
    assert all(pending(world, node) == [] for node in NODES), "a refused job left a command"
    return caught.value


async def test_a_submission_stores_the_job_its_runs_and_one_offer_per_node(world: JobWorld) -> None:
    signed = world.signed()
    job = await world.submit(signed)

    assert job.state is JobState.PENDING
    assert [(run.node, run.state, run.dataset) for run in job.runs] == [
        (node, RunState.OFFERED, f"{node}-aisnp") for node in NODES
    ]
    for node in NODES:
        (command,) = pending(world, node)
        assert command.offer.run_id == run_id(job.job_id, node, 1)
        assert command.offer.job.payload == signed.payload, "the bytes as signed are what is sent"
        assert command.offer.job.signatures[0].signature == signed.signature
    audit = world.database.run_sync(lambda s: AuditRepository(s).page(Page(1)))
    assert (audit.items[0].actor, audit.items[0].action) == ("ada", "job_submitted")


async def test_the_same_bytes_again_get_the_first_answer_even_after_the_deadline(world: JobWorld) -> None:
    signed = world.signed()
    first = await world.submit(signed)
    world.clock.advance(timedelta(days=1))
    assert await world.submit(signed) == first
    assert [len(pending(world, node)) for node in NODES] == [1, 1, 1]


async def test_other_bytes_under_the_same_id_are_refused(world: JobWorld) -> None:
    job = await world.submit()
    with pytest.raises(HansaError) as caught:
        await world.submit(job_id=job.job_id, quorum=1)
    assert caught.value.reason is Reason.IDEMPOTENCY_MISMATCH


async def test_a_job_that_another_person_signed_is_refused(world: JobWorld) -> None:
    forged = replace(world.signed(signer="bob"), key_id="ada")
    assert (await refusal(world, signed=forged)).reason is Reason.ENVELOPE_INVALID
    assert (await refusal(world, signed=world.signed(signer="bob"))).reason is Reason.ENVELOPE_INVALID
    assert (await refusal(world, signed=world.signed(), caller="bob")).reason is Reason.ENVELOPE_INVALID


async def test_a_job_that_was_altered_after_signing_is_refused(world: JobWorld) -> None:
    signed = world.signed()
    altered = replace(signed, payload=signed.payload.replace(b'"quorum": 3', b'"quorum": 1'))
    assert altered.payload != signed.payload
    assert (await refusal(world, signed=altered)).reason is Reason.ENVELOPE_INVALID


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"quorum": 4}, Reason.QUORUM_INVALID),
        ({"quorum": 0}, Reason.ENVELOPE_INVALID),
        ({"not_after": START.isoformat()}, Reason.DEADLINE_INVALID),
        ({"not_after": (START + timedelta(days=400)).isoformat()}, Reason.DEADLINE_INVALID),
        ({"not_before": (START + timedelta(minutes=10)).isoformat()}, Reason.DEADLINE_INVALID),
        ({"analysis": {"name": "nothing", "version": "1.0", "digest": BUNDLE_DIGEST}}, Reason.PROJECT_NOT_ADMITTED),
        (
            {"analysis": {"name": "allele-frequency", "version": "2.0", "digest": BUNDLE_DIGEST}},
            Reason.PROJECT_NOT_ADMITTED,
        ),
        (
            {"analysis": {"name": "allele-frequency", "version": "1.0", "digest": snapshot("x")}},
            Reason.ANALYSIS_UNKNOWN,
        ),
        ({"parameters": {"variant": "rs1"}}, Reason.PARAMETER_UNKNOWN),
        ({"parameters": {}}, Reason.PARAMETER_MISSING),
        ({"parameters": {"variants": "rs1", "region": "2:1-10"}}, Reason.PARAMETER_MISSING),
        ({"parameters": {"variants": "2:x:A:C"}}, Reason.PARAMETER_INVALID),
        ({"parameters": {"variants": "chr2:10:A:C"}}, Reason.PARAMETER_INVALID),
        ({"parameters": {"variants": "rs1", "stratify": "age"}}, Reason.PARAMETER_INVALID),
        ({"extra": 1}, Reason.ENVELOPE_INVALID),
        ({"federation": "other"}, Reason.ENVELOPE_INVALID),
        ({"directory_version": 2}, Reason.DIRECTORY_CHANGED),
        ({"project": "another"}, Reason.PROJECT_NOT_ADMITTED),
        ({"recipient_key": "A" * 43 + "="}, Reason.ENVELOPE_INVALID),
    ],
)
async def test_a_bad_request_has_one_clear_reason(world: JobWorld, changes: dict[str, Any], reason: Reason) -> None:
    assert (await refusal(world, **changes)).reason is reason


@pytest.mark.parametrize(
    ("node", "dataset", "digest", "reason"),
    [
        ("SE", "SE-aisnp", "SE", Reason.NODE_UNKNOWN),
        ("FI", "FI-other", "FI", Reason.PROJECT_NOT_ADMITTED),
        ("FI", "ES-aisnp", "ES", Reason.PROJECT_NOT_ADMITTED),
        ("FI", "FI-aisnp", "older", Reason.SNAPSHOT_CHANGED),
    ],
)
async def test_a_dataset_must_be_there_as_the_researcher_saw_it(
    world: JobWorld, node: str, dataset: str, digest: str, reason: Reason
) -> None:
    refs = [{"node": node, "dataset": dataset, "snapshot": snapshot(digest)}]
    error = await refusal(world, datasets=refs, quorum=1)
    assert (error.reason, error.field) == (reason, "datasets")


async def test_datasets_of_two_builds_are_refused(world: JobWorld) -> None:
    other = [Dataset("IT-aisnp", "IT", "GRCh38", snapshot("IT"))]
    world.database.run_sync(lambda s: DatasetRepository(s).replace("IT", other))
    assert (await refusal(world)).reason is Reason.BUILD_MISMATCH


async def test_a_node_that_is_not_active_gets_no_jobs(world: JobWorld) -> None:
    act = Act("op1", START)
    world.database.run_sync(lambda s: suspend_node(s, NodeId("IT"), "", act))
    assert (await refusal(world)).reason is Reason.NODE_SUSPENDED
    world.database.run_sync(lambda s: revoke_node(s, NodeId("IT"), "", act))
    assert (await refusal(world)).reason is Reason.NODE_REVOKED


async def test_the_commands_of_a_node_are_one_chain(world: JobWorld) -> None:
    for _ in range(5):
        await world.submit()
    stored = world.database.run_sync(lambda s: CommandRepository(s).pending("FI", after=0, limit=100))
    head = world.database.run_sync(lambda s: CommandRepository(s).head("FI"))
    assert [command.seq for command in stored] == [1, 2, 3, 4, 5]
    at = world.database.run_sync(lambda s: [CommandRepository(s).hash_at("FI", number) for number in range(6)])
    assert [command.prev_hash for command in stored] == at[:5]
    assert head.hash == at[5]
