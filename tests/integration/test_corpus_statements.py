"""The corpus of release statements that do not hold, U11: over a real session, and the node is set apart."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.api.frames import envelope_message
from coordinator.store.nodes import NodeRepository
from hansa.contract.envelope import STATEMENT_TYPE, VOTE_TYPE, Signed
from hansa.contract.ids import NodeId
from hansa.contract.job import AnalysisRef
from hansa.v1 import node_service_pb2 as wire
from tests.support.corpus import CorpusFederation, Entry, RawNode, check_refusal, corpus_federation, entries, signed_job
from tests.support.evidence_world import EvidenceWorld
from tests.support.job_world import released
from tests.support.scripted_node import report, run_at

GOOD = released()


@pytest.fixture
async def federation(tmp_path: Path) -> AsyncIterator[CorpusFederation]:
    async with corpus_federation(tmp_path) as running:
        yield running


@pytest.mark.parametrize("entry", entries("statements"))
async def test_a_release_that_does_not_hold_is_refused_and_its_node_set_apart(
    federation: CorpusFederation, entry: Entry
) -> None:
    node, statement = await running(federation, entry)
    content = b"other" if entry.input.get("announce_other") else GOOD
    await say(node, statement if not entry.input.get("missing") else None, content)
    error = await node.ended()
    assert error is not None
    check_refusal(error, entry.expect)
    found = federation.live.foundation.database.run_sync(lambda s: NodeRepository(s).find(NodeId("FI")))
    assert found is not None
    assert found.state == "QUARANTINED"
    assert not federation.dump()["statements"]
    assert not federation.dump()["summaries"]


async def test_the_same_statement_without_a_fault_is_taken(federation: CorpusFederation) -> None:
    honest = Entry("U11", "honest", {}, {})
    node, statement = await running(federation, honest)
    await say(node, statement, GOOD)
    await node.receive("event_ack")
    assert federation.dump()["statements"]


async def running(federation: CorpusFederation, entry: Entry) -> tuple[RawNode, Signed]:
    """Return the node with a run under way, and the statement that the entry asks for."""
    node, job = await federation.attach(), signed_job(federation)
    answer = await federation.submit(job)
    await node.take_command()
    run = run_at(answer.job.job_id, "FI")
    await node.tell(report(run, "ACCEPTED"), report(run, "RUNNING", execution=1))
    envelope = Signed(job.payload_type, job.payload, job.signatures[0].key_id, job.signatures[0].signature)
    changes = dict(entry.input.get("changes", {}))
    if "analysis" in changes:
        changes["analysis"] = AnalysisRef(**changes["analysis"])
    statement = EvidenceWorld(federation.live.trust, ("FI",)).statement(envelope, "FI", GOOD, **changes)
    if entry.input.get("zeros"):
        statement = replace(statement, signature=bytes(64))
    if entry.input.get("relabelled"):
        assert statement.payload_type == STATEMENT_TYPE
        statement = replace(statement, payload_type=VOTE_TYPE)
    node.run = run
    return node, statement


async def say(node: RawNode, statement: Signed | None, content: bytes) -> None:
    told = wire.SummaryReleased(
        run_id=node.run,
        attempt=1,
        execution=1,
        summary_digest=hashlib.sha256(content).digest(),
        summary_size=len(content),
        statement=None if statement is None else envelope_message(statement),
    )
    seq = node.store.events.append(wire.EventBody(summary_released=told))
    await node.send(wire.NodeFrame(event=node.store.events.event(seq, node.epoch)))
