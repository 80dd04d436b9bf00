"""An agent's inner parts on a real store, without the daemon around them."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from sqlalchemy.orm import Session

from hansa.contract import envelope
from hansa.contract.decision import ReleaseDecision
from hansa.contract.digests import digest
from hansa.contract.envelope import JOB_TYPE
from hansa.contract.ids import run_id
from hansa.contract.job import AnalysisRef, DatasetRef, JobSpec
from hansa.contract.manifest import Manifest
from hansa.trust.view import TrustView
from hansa.v1 import node_service_pb2, types_pb2
from node_agent.airlock.gate import Airlock, Gate
from node_agent.airlock.statements import Notary
from node_agent.catalogue import InstalledAnalysis
from node_agent.config import StateFolder, create_state_folder
from node_agent.executions import Executions
from node_agent.keys.signing import KeySigner
from node_agent.link.commands import Commands, Wishes
from node_agent.link.encoding import WireReporter
from node_agent.offers import Offers, SignedOffer
from node_agent.policy.policy import Policy, policy_digest, policy_of
from node_agent.reporting import Bells
from node_agent.scheduling import Scheduler
from node_agent.staging.snapshot import SNAPSHOT_FILE, SNAPSHOT_FILES, record_bytes
from node_agent.store.database import Database
from node_agent.store.models import DatasetRow, EventRow, RunRow, SummaryRow
from node_agent.store.outbox import event_head, found_store
from tests.support.small_directory import FEDERATION, signing_key_of, small_directory, view_of

T = TypeVar("T")

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
DIGEST = "sha256:" + "a" * 64
NODE = "FI"
_BY_SEX = {"female": 61, "male": 38, "unknown": 0}
_EMPTY = hashlib.sha256().hexdigest()
_RECORD = record_bytes(
    {
        "build": "GRCh37",
        "people": 99,
        "people_by_sex": _BY_SEX,
        "variants": 1,
        "skipped": {},
        "files": [{"path": name, "sha256": _EMPTY, "size": 0} for name in sorted(SNAPSHOT_FILES)],
    }
)
SNAPSHOT = digest(_RECORD)

_CELLS = ("people", "an", "ac", "carriers", "others")
MANIFEST = {
    "name": "allele-frequency",
    "version": "1.0",
    "title": "Allele frequencies",
    "parameters": {
        "variants": {"type": "variants"},
        "region": {"type": "region"},
        "stratify": {"type": "choice", "choices": ["sex"]},
    },
    "one_of": [["variants", "region"]],
    "summary": {
        "axes": {
            "variant": {"labels": "variant"},
            "stratum": {"labels": "choice", "choices": ["all", "female", "male", "unknown"]},
        },
        "arrays": {
            name: {
                "dtype": "int64",
                "axes": ["variant", "stratum"],
                "merge": "sum",
                "released": name in ("people", "an", "ac"),
            }
            for name in _CELLS
        },
    },
    "disclosure": "allele-counts",
}

OPEN_POLICY: Mapping[str, Any] = {
    "admission": {"submitters": ["ada"], "analyses": ["allele-frequency@1.0"]},
    "release": {"mode": "auto"},
}


def job(*, deadline: timedelta = timedelta(minutes=30), **changes: Any) -> JobSpec:
    """Return a job for FI (and ES) that the open policy admits."""
    values: dict[str, Any] = {
        "federation": FEDERATION,
        "directory_version": 1,
        "job_id": str(uuid4()),
        "project": "demo",
        "nonce": secrets.token_hex(16),
        "submitter": "ada",
        "analysis": AnalysisRef(name="allele-frequency", version="1.0", digest=DIGEST),
        "parameters": {"variants": "15:28365618:A:G"},
        "datasets": tuple(DatasetRef(node=n, dataset=f"{n}-lct", snapshot=SNAPSHOT) for n in (NODE, "ES")),
        "quorum": 2,
        "not_before": START,
        "not_after": START + deadline,
    }
    return JobSpec(**{**values, **changes})


def offer(spec: JobSpec, *, attempt: int = 1) -> SignedOffer:
    """Return the offer of ``spec`` to FI."""
    return SignedOffer(
        run_id=run_id(spec.job_id, NODE, 1),
        job_id=spec.job_id,
        round=1,
        attempt=attempt,
        payload_type=JOB_TYPE,
        payload=spec.to_bytes(),
        key_id=spec.submitter,
        signature=b"s",
    )


def collected(*, people: int = 99, carriers: int = 50, others: int = 80) -> str:
    """Return what a run writes for one variant, whose counts add up."""
    ac = carriers + people - others
    counts = {"people": people, "an": 2 * people, "ac": ac, "carriers": carriers, "others": others}
    arrays = {
        name: {"dtype": "int64", "axes": ["variant", "stratum"], "merge": "sum", "values": [counts[name]]}
        for name in _CELLS
    }
    axes = {"variant": ["15:28365618:A:G"], "stratum": ["all"]}
    return json.dumps({"v": 1, "axes": axes, "notes": {}, "arrays": arrays})


@dataclass
class Bench:
    """The parts, a clock that is set by hand, and what was sent to the broker."""

    state: StateFolder
    snapshot: Path
    database: Database
    policy: Policy
    offers: Offers
    commands: Commands
    executions: Executions
    airlock: Airlock
    scheduler: Scheduler
    wishes: Wishes
    bells: Bells
    now: datetime = START
    enqueued: list[str] = field(default_factory=list)
    trust: TrustView | None = field(default_factory=lambda: view_of(small_directory()))
    approvals: tuple[str, ...] = (digest(b"an approval"),)

    async def offer(self, signed: SignedOffer) -> RunRow:
        """Receive an offer as the link does; return the run."""
        await self.database.run(lambda session: self.offers.receive(session, signed, self.now))
        return await self.run(signed.run_id)

    async def run(self, name: str) -> RunRow:
        """Return a run as the store has it."""
        return await self.database.run(lambda session: session.get_one(RunRow, name))

    async def step(self) -> None:
        """Let the scheduler do what it does each second."""
        await self.scheduler.step()

    async def running(self, spec: JobSpec) -> RunRow:
        """Return a run that a worker has claimed."""
        run = await self.offer(offer(spec))
        await self.step()
        await self.executions.claim(run.run_id, "worker-1")
        return await self.run(run.run_id)

    async def decide(self, name: str, decision: Any, *, why: str = "fine", by: str = "pia") -> RunRow:
        """Hand in the decision of ``by`` on what waits of a run, signed; return the run."""
        row = await self.summary(name)
        made = ReleaseDecision(
            node=NODE,
            run_id=name,
            summary_digest=f"sha256:{row.digest.hex()}",
            decision=decision,
            reason=why,
            checker=by,
            at=self.now,
        )
        signed = envelope.sign(envelope.DECISION_TYPE, made.to_bytes(), key_id=by, key=signing_key_of(by))
        return await self.airlock.decide(name, decision, signed)

    async def summary(self, name: str) -> SummaryRow:
        """Return what the airlock holds of a run."""
        return await self.database.run(lambda session: session.get_one(SummaryRow, name))

    async def reports(self, name: str) -> list[str]:
        """Return the states that were reported of a run, in order."""

        def read(session: Session) -> list[str]:
            bodies = [node_service_pb2.EventBody.FromString(row.body) for row in session.query(EventRow)]
            return [
                types_pb2.Run.State.Name(body.run_reported.state) for body in bodies if body.run_reported.run_id == name
            ]

        return await self.database.run(read)

    async def events(self) -> int:
        """Return how many events the outbox holds."""
        return (await self.database.run(event_head)).seq


def make_bench(folder: Path, policy: Mapping[str, Any] = OPEN_POLICY) -> Bench:
    """Return the parts of FI on a fresh store below ``folder``."""
    state = create_state_folder(folder / "state")
    database = Database.open(state.database)
    analysis = InstalledAnalysis(Manifest.model_validate_json(json.dumps(MANIFEST)), DIGEST, folder)
    analyses = {analysis.key: analysis}
    reporter, bells = WireReporter(NODE), Bells()
    held: list[Bench] = []
    in_force = policy_of(policy)

    def clock() -> datetime:
        return held[0].now

    def current() -> Policy:
        return held[0].policy

    def enqueue(name: str) -> None:
        held[0].enqueued.append(name)

    gate = Gate(
        analyses=analyses,
        policy=current,
        reporter=reporter,
        notary=Notary(
            node=NODE,
            signer=KeySigner(NODE, signing_key_of(NODE)),
            trust=lambda: held[0].trust,
            policy_digest=lambda: policy_digest(held[0].policy),
            approvals_of=lambda _session, _run_id: held[0].approvals,
        ),
    )
    wishes = Wishes()
    offers = Offers(node=NODE, analyses=analyses, policy=current, draining=lambda: wishes.draining, reporter=reporter)
    snapshot = make_snapshot(state.datasets / "FI-lct" / SNAPSHOT.removeprefix("sha256:"))
    bench = Bench(
        state=state,
        snapshot=snapshot,
        wishes=wishes,
        bells=bells,
        database=database,
        policy=in_force,
        offers=offers,
        commands=Commands(offers, reporter),
        executions=Executions(
            database=database,
            state=state,
            analyses=analyses,
            gate=gate,
            reporter=reporter,
            bells=bells,
            clock=clock,
        ),
        airlock=Airlock(database=database, gate=gate, bells=bells, clock=clock),
        scheduler=Scheduler(
            database=database, policy=current, reporter=reporter, bells=bells, clock=clock, enqueue=enqueue
        ),
    )
    held.append(bench)
    _found(database, snapshot)
    return bench


def make_snapshot(folder: Path) -> Path:
    """Make a snapshot of empty files, which is ``SNAPSHOT``, in ``folder``; return it."""
    folder.mkdir(parents=True)
    for name in SNAPSHOT_FILES:
        (folder / name).touch()
    (folder / SNAPSHOT_FILE).write_bytes(_RECORD)
    return folder


def _found(database: Database, snapshot: Path) -> None:
    in_store: Callable[[Session], None] = partial(_seed, snapshot=snapshot)
    database._transact(in_store)


def _seed(session: Session, snapshot: Path) -> None:
    found_store(session, str(uuid4()))
    session.add(
        DatasetRow(
            dataset_id="FI-lct",
            snapshot=SNAPSHOT,
            build="GRCh37",
            folder=str(snapshot),
            info={
                "people": 99,
                "people_by_sex": _BY_SEX,
                "variants": 1,
                "skipped": {},
            },
            added_at=START,
        )
    )
