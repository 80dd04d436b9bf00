"""Gathers what the checks look at: proofs and figures while the federation lives, its stores once it has stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from coordinator.config import load_config
from coordinator.store import job_models, people_models
from coordinator.store.audit_check import verify_log
from hansa.contract.errors import HansaError
from hansa.contract.outbox import Head
from hansa.contract.states import JobState
from hansa.sdk.client import Client
from hansa.sdk.proving import prove
from hansa.sdk.trust import read_trust_root
from hansa.sdk.verification import Verifier
from node_agent.audit.verification import Recount
from node_agent.store import models
from tests.support.demo_oracle import Truth, sample_sexes
from tests.support.nemesis_check import (
    CoordinatorStore,
    Evidence,
    NodeRun,
    NodeStore,
    NodeSummary,
    SeenJob,
    Stored,
)
from tests.support.nemesis_federation import NODES, Federation
from tests.support.nemesis_work import Asked, Workload

# Two heartbeats, and ten times what an end takes to be told on a busy machine.
MARGIN_SECONDS: Final = 2 * 5.0 + 60.0
_GENOTYPE_COLUMNS: Final = 9
_ROWS: Final = 20
_LONG_LINE: Final = 40


async def examine_results(
    client: Client, asked: Sequence[Asked], truths: Mapping[str, Mapping[str, Truth]], evidence: Evidence
) -> None:
    """Prove every completed job, and hold its figures against the oracle's."""
    verifier = Verifier(root=read_trust_root(client.profile.trust_root), recipient_key=None, with_summaries=True)
    for job in asked:
        if job.state != JobState.COMPLETED:
            continue
        try:
            proof = await prove(client, verifier, job.job_id)
            answer = await client.jobs.result(job.job_id)
        except HansaError as error:
            evidence.unproven.append(f"job {job.job_id}: {error}")
            continue
        evidence.unproven += [f"job {job.job_id}: {step.name}: {step.words}" for step in proof.report.failed]
        evidence.places[f"result of {job.job_id}"] = answer.result
        wrong = wrong_figures(json.loads(answer.result), truths)
        evidence.wrong_figures += [f"job {job.job_id}: {words}" for words in wrong]


def wrong_figures(result: Mapping[str, Any], truths: Mapping[str, Mapping[str, Truth]]) -> list[str]:
    """Return the figures of a result that the data does not give, or that should not have left."""
    found: list[str] = []
    for entry in result["variants"]:
        rsid, pooled = entry["rsid"] or entry["variant"], [0, 0, 0]
        for node, cell in entry["countries"].items():
            known = truths[node][rsid].everybody
            figures = [cell[name] for name in ("people", "ac", "an")]
            if cell["status"] == "released":
                if figures != [known.people, known.ac, known.an] or not known.passes:
                    found.append(f"{rsid} of {node} is {figures}")
                pooled = [have + more for have, more in zip(pooled, figures, strict=True)]
            elif figures != [None] * 3 or (cell["status"] == "suppressed" and known.passes):
                found.append(f"{rsid} of {node} is {cell['status']} with {figures}")
        told = [entry["pooled"][name] for name in ("people", "ac", "an")]
        if told != (pooled if pooled[0] else [None] * 3):
            found.append(f"{rsid} is {told} in all, the sum is {pooled}")
    return found


def seen_jobs(workload: Workload) -> dict[str, SeenJob]:
    """Return the jobs as their researcher saw them; one without an answer may or may not be there."""
    return {
        asked.job_id: SeenJob(
            accepted=asked.accepted is True,
            state=asked.state,
            took=None if asked.ended is None else asked.ended - asked.submitted,
            most=asked.lifetime + MARGIN_SECONDS,
            seen=asked.seen,
        )
        for asked in workload.asked.values()
    }


# --- stores ---------------------------------------------------------------------------


def read_node(database: Path) -> NodeStore:
    """Return what a stopped node's database says."""
    engine = create_engine(f"sqlite:///{database}")
    try:
        with Session(engine) as session:
            return _node(session)
    finally:
        engine.dispose()


def _node(session: Session) -> NodeStore:
    store = session.scalars(select(models.StoreRow)).one()
    leaves = session.scalars(select(models.AuditLeafRow).order_by(models.AuditLeafRow.index)).all()
    entries = [json.loads(leaf.body) for leaf in leaves]
    events = session.scalars(select(models.EventRow).order_by(models.EventRow.seq))
    recount = Recount()
    recount.page(session, len(leaves))
    if recount.fault is None:
        recount.finish(session, len(leaves))
    return NodeStore(
        events=[Stored(row.seq, row.hash, row.body) for row in events],
        command_cursor=Head(store.command_seq, store.command_hash),
        runs={
            row.run_id: NodeRun(row.job_id, row.execution, row.state, row.reason)
            for row in session.scalars(select(models.RunRow))
        },
        summaries={
            row.run_id: NodeSummary(row.execution, row.decision, row.outgoing or b"", row.uploaded_at is not None)
            for row in session.scalars(select(models.SummaryRow))
        },
        log=[(entry["action"], entry["facts"]) for entry in entries],
        log_fault="" if recount.fault is None else f"entry {recount.fault.index}: {recount.fault.fault}",
    )


def read_coordinator(state: Path) -> CoordinatorStore:
    """Return what a stopped coordinator's database says."""
    engine = create_engine(load_config(state).database_url(state))
    try:
        with Session(engine) as session:
            return _coordinator(session)
    finally:
        engine.dispose()


def _coordinator(session: Session) -> CoordinatorStore:
    found = CoordinatorStore()
    jobs, runs = job_models.JOBS, job_models.RUNS
    found.jobs = {row.job_id: row.state for row in session.execute(select(jobs.c.job_id, jobs.c.state))}
    found.runs = {row.run_id: row.state for row in session.execute(select(runs.c.run_id, runs.c.state))}
    for table, place in ((job_models.EVENTS, found.events), (job_models.COMMANDS, found.commands)):
        for row in session.execute(select(table).order_by(table.c.node, table.c.seq)):
            place.setdefault(row.node, []).append(Stored(row.seq, row.hash, row.body))
    for node in session.scalars(select(people_models.NodeRow)):
        found.cursors[node.node] = Head(node.event_cursor_seq, node.event_cursor_hash)
        found.node_states[node.node] = node.state
    summaries = select(job_models.SUMMARIES.c.run_id, job_models.SUMMARIES.c.content)
    found.summaries = {row.run_id: row.content for row in session.execute(summaries)}
    found.statements = set(session.scalars(select(job_models.STATEMENTS.c.run_id)))
    log = verify_log(session)
    found.log_fault = "" if log.first_wrong is None else f"entry {log.first_wrong}"
    return found


def read_stores(federation: Federation, evidence: Evidence) -> None:
    """Read every store of the stopped federation."""
    evidence.coordinator = read_coordinator(federation.layout.coordinator_state)
    evidence.nodes = {node: read_node(federation.layout.node(node).state / "node.db") for node in NODES}


# --- what must not be anywhere ------------------------------------------------------------


def look_everywhere(federation: Federation, data: Path, evidence: Evidence) -> None:
    """Collect where a node's rows, samples and paths could have gone, and what of them to look for."""
    layout = federation.layout
    evidence.canaries = canaries(data, [str(layout.node(node).folder) for node in NODES])
    for path in sorted(layout.coordinator_state.rglob("*")):
        if path.is_file():
            evidence.places[f"the coordinator's {path.name}"] = path.read_bytes()
    evidence.places["the coordinator's log"] = layout.coordinator.log_file.read_bytes()
    if federation.frame_proxy is not None:
        evidence.places["frames to the coordinator"] = b"".join(federation.frame_proxy.readable)
    passwords = [service.secret.encode() for service in (federation.rabbit,) if service is not None]
    evidence.secrets = [*secrets(layout.root), *passwords]
    evidence.logs = {name: path.read_bytes() for name, path in federation.logs().items()}


def canaries(data: Path, paths: Sequence[str]) -> list[bytes]:
    """Return every sample id, some genotype rows, and the nodes' paths."""
    import gzip  # only here

    found = [path.encode() for path in (*paths, str(data))]
    for node in NODES:
        found += [sample.encode() for sample in sample_sexes(data / node / "samples.tsv")]
        with gzip.open(data / node / "aisnp.vcf.gz", "rt") as vcf:
            rows = [line.rstrip("\n").split("\t") for line in vcf if not line.startswith("#")]
        found += ["\t".join(row[_GENOTYPE_COLUMNS:]).encode() for row in rows[:_ROWS]]
    return found


def secrets(root: Path) -> list[bytes]:
    """Return a line of every private key of the federation, and what begins a token."""
    keys = [path for path in root.rglob("*.key") if path.is_file()]
    keys += [path for path in root.rglob("credential.pem") if path.is_file()]
    found = {b"Bearer ey", b"PRIVATE KEY"}
    for path in keys:
        content = path.read_bytes()
        lines = content.splitlines() if content.startswith(b"-----") else [content.hex().encode()]
        found |= set([line for line in lines if len(line) >= _LONG_LINE and b"-----" not in line][:1])
    return sorted(found)
