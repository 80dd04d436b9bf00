"""An agent's inner parts on a real store, without the daemon around them."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session

from hansa.contract.approval import Approval, ApprovalLimits, JobApproval, StandingApproval
from hansa.contract.decision import ReleaseDecision
from hansa.contract.digests import bundle_digest, digest
from hansa.contract.envelope import APPROVAL_TYPE, DECISION_TYPE, JOB_TYPE, Signed, sign
from hansa.contract.ids import run_id
from hansa.contract.job import AnalysisRef, DatasetRef, JobSpec
from hansa.contract.limits import MAX_VARIANTS
from hansa.contract.raw_keys import key_digest, key_text
from hansa.runtime.drain import DrainFile
from hansa.v1 import node_service_pb2, types_pb2
from node_agent.airlock.gate import Airlock, Gate
from node_agent.airlock.statements import Notary
from node_agent.approval_records import approvals_of, keep_approval
from node_agent.approvals import Approvals
from node_agent.catalogue import Catalogue
from node_agent.config import StateFolder, create_state_folder
from node_agent.executions import Executions
from node_agent.keys.signing import KeySigner
from node_agent.link.commands import Commands, Wishes
from node_agent.link.encoding import WireReporter
from node_agent.offers import Offers, SignedOffer
from node_agent.policy.admission import NodeKeys
from node_agent.policy.approvals import Site
from node_agent.policy.policy import Policy, data_holder, policy_digest, policy_of
from node_agent.reporting import Bells
from node_agent.scheduling import Presence, RunQueue, Scheduler
from node_agent.situation import Situation
from node_agent.staging.snapshot import SNAPSHOT_FILE, SNAPSHOT_FILES, record_bytes
from node_agent.store.database import Database
from node_agent.store.models import DatasetRow, EventRow, RunRow, SummaryRow
from node_agent.store.outbox import event_head, found_store
from node_agent.trust.book import TrustBook
from node_agent.trust.keeper import TrustKeeper
from tests.support.presence_double import PresenceDouble
from tests.support.trust_world import PROJECT, TrustWorld, build_trust_world

T = TypeVar("T")

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
NODE = "FI"
FEDERATION = "demo.example"
HOLDER = "holder-fi"
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

BUNDLE = {"manifest.json": json.dumps(MANIFEST).encode(), "Snakefile": b"rule all:\n    input: []\n"}
DIGEST = bundle_digest(BUNDLE)
ANALYSIS = AnalysisRef(name="allele-frequency", version="1.0", digest=DIGEST)


def person_key(name: str) -> Ed25519PrivateKey:
    """Return the signing key of a person or node; the same in each test."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def pinned(name: str) -> str:
    """Return the policy's entry for a data holder."""
    return data_holder(name, key_digest(key_text(person_key(name).public_key())))


OPEN_POLICY: Mapping[str, Any] = {
    "admission": {"submitters": ["ada"], "analyses": ["allele-frequency@1.0"]},
    "approval": {"data_holders": [pinned(HOLDER)]},
    "release": {"mode": "auto"},
}
_PEOPLE = ("ada", "bob", "author", "rev1", "rev2", "rev3", HOLDER, "checker-fi", "checker2-fi", "operator-fi", NODE)


def make_world(folder: Path, now: datetime = START, bundle: Mapping[str, bytes] = BUNDLE) -> TrustWorld:
    """Return a federation of FI and ES, signed ``now``, whose analysis is the one that the jobs here ask for."""
    folder.mkdir(parents=True)
    for name, content in bundle.items():
        (folder / name).write_bytes(content)
    return build_trust_world(
        folder,
        datasets={node: f"{node}-lct" for node in (NODE, "ES")},
        now=now,
        federation=FEDERATION,
        keys={name: person_key(name) for name in _PEOPLE},
    )


def job(*, deadline: timedelta = timedelta(minutes=30), **changes: Any) -> JobSpec:
    """Return a job for FI (and ES) that the open policy admits."""
    values: dict[str, Any] = {
        "federation": FEDERATION,
        "directory_version": 1,
        "job_id": str(uuid4()),
        "nonce": secrets.token_hex(16),
        "submitter": "ada",
        "project": PROJECT,
        "analysis": ANALYSIS,
        "parameters": {"variants": "15:28365618:A:G"},
        "datasets": tuple(DatasetRef(node=n, dataset=f"{n}-lct", snapshot=SNAPSHOT) for n in (NODE, "ES")),
        "quorum": 2,
        "not_before": START,
        "not_after": START + deadline,
    }
    return JobSpec(**{**values, **changes})


def signed_as(spec: JobSpec, signer: str = "") -> Signed:
    """Return the envelope of ``spec`` as its submitter, or another, signs it."""
    name = signer or spec.submitter
    return sign(JOB_TYPE, spec.to_bytes(), key_id=name, key=person_key(name))


def offer(spec: JobSpec, *, attempt: int = 1, signed: Signed | None = None) -> SignedOffer:
    """Return the offer of ``spec`` to FI, in its submitter's envelope unless another is given."""
    envelope = signed or signed_as(spec)
    return SignedOffer(
        run_id=run_id(spec.job_id, NODE, 1),
        job_id=spec.job_id,
        round=1,
        attempt=attempt,
        payload_type=envelope.payload_type,
        payload=envelope.payload,
        key_id=envelope.key_id,
        signature=envelope.signature,
    )


def standing(**changes: Any) -> StandingApproval:
    """Return the standing approval of FI's data holder for the jobs here."""
    values: dict[str, Any] = {
        "approval_id": str(uuid4()),
        "federation": FEDERATION,
        "node": NODE,
        "project": PROJECT,
        "analysis": ANALYSIS,
        "datasets": (f"{NODE}-lct",),
        "limits": ApprovalLimits(max_variants=MAX_VARIANTS, max_region_bases=3_000_000),
        "approver": HOLDER,
        "not_before": START,
        "not_after": START + timedelta(days=300),
    }
    return StandingApproval(**{**values, **changes})


def approve_job(spec: JobSpec, **changes: Any) -> JobApproval:
    """Return the approval of ``spec`` by FI's data holder."""
    values: dict[str, Any] = {
        "approval_id": str(uuid4()),
        "federation": FEDERATION,
        "node": NODE,
        "job_id": spec.job_id,
        "job_digest": digest(spec.to_bytes()),
        "approver": HOLDER,
        "at": START,
    }
    return JobApproval(**{**values, **changes})


def approved_by(approval: Approval, signer: str = "") -> Signed:
    """Return the envelope of ``approval`` as its approver, or another, signs it."""
    name = signer or approval.approver
    return sign(APPROVAL_TYPE, approval.to_bytes(), key_id=name, key=person_key(name))


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
    world: TrustWorld
    trust: TrustBook
    catalogue: Catalogue
    situation: Situation
    database: Database
    policy: Policy
    offers: Offers
    approvals: Approvals
    commands: Commands
    executions: Executions
    airlock: Airlock
    scheduler: Scheduler
    keeper: TrustKeeper
    wishes: Wishes
    bells: Bells
    reporter: WireReporter
    now: datetime = START
    alarmed: bool = False
    clock_wrong: bool = False
    workers: PresenceDouble = field(default_factory=PresenceDouble)
    enqueued: list[str] = field(default_factory=list)
    # What the broker says it holds; None: it does not tell.
    depth: int | None = None

    def trust_changes(self, **fields: Any) -> None:
        """Replace fields of the directory, and put the new version in force at the node."""
        self.world.change(**fields)
        self.trust_now()

    def trust_now(self) -> None:
        """Put in force what the world has published."""
        self.trust.view = view = self.world.view
        self.catalogue.install(view, lambda _path, sha256: self.world.files.target_file(sha256))

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

    async def decide(self, name: str, decision: Any, *, why: str = "fine", by: str = "checker-fi") -> RunRow:
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
        signed = sign(DECISION_TYPE, made.to_bytes(), key_id=by, key=person_key(by))
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


def make_bench(folder: Path, policy: Mapping[str, Any] = OPEN_POLICY, *, approved: bool = True) -> Bench:
    """Return the parts of FI on a fresh store below ``folder``.

    Args:
        folder: where the state folder is made.
        policy: the node's.
        approved: whether its data holder has given a standing approval.
    """
    world = make_world(folder / "analysis")
    return open_bench(create_state_folder(folder / "state"), world, policy, approved=approved)


def open_bench(
    state: StateFolder,
    world: TrustWorld,
    policy: Mapping[str, Any] = OPEN_POLICY,
    *,
    approved: bool = True,
    trusted: bool = True,
    premises: Presence | None = None,
    queue: RunQueue | None = None,
) -> Bench:
    """Return the parts of FI on the store in ``state``; twice on one is a restart.

    Args:
        state: a state folder.
        world: the federation, of this node among others.
        policy: the node's.
        approved: whether its data holder has given a standing approval.
        trusted: whether what the world says is in force already; else the keeper has to fetch it.
        premises: the look at this host; ``Bench.workers`` unless one is given.
        queue: a broker's; else ``Bench.enqueued`` keeps what was sent, and nobody counts it.
    """
    database = Database.open(state.database)
    reporter, bells, wishes, trust = WireReporter(NODE), Bells(), Wishes(), TrustBook()
    catalogue = Catalogue(state.analyses, trust.current)
    held: list[Bench] = []

    def clock() -> datetime:
        return held[0].now

    def current() -> Policy:
        return held[0].policy

    def keep(name: str) -> None:
        held[0].enqueued.append(name)

    entry = world.directory.node(NODE)
    assert entry is not None
    situation = Situation(
        site=Site(world.directory.federation, NODE),
        analyses=catalogue,
        policy=current,
        trust=trust.current,
        keys=NodeKeys(entry.signing_key, entry.agreement_key),
        draining=lambda: wishes.draining,
        alarm=lambda: held[0].alarmed,
        clock_wrong=lambda: held[0].clock_wrong,
    )
    gate = Gate(
        analyses=catalogue,
        policy=current,
        reporter=reporter,
        notary=Notary(
            node=NODE,
            signer=KeySigner(NODE, person_key(NODE)),
            trust=trust.current,
            policy_digest=lambda: policy_digest(held[0].policy),
            approvals_of=approvals_of,
        ),
        refusal=situation.refusal,
    )
    offers = Offers(situation=situation, reporter=reporter)
    snapshot = state.datasets / "FI-lct" / SNAPSHOT.removeprefix("sha256:")
    workers = PresenceDouble()
    bench = Bench(
        state=state,
        workers=workers,
        snapshot=snapshot if snapshot.exists() else make_snapshot(snapshot),
        world=world,
        trust=trust,
        catalogue=catalogue,
        situation=situation,
        wishes=wishes,
        bells=bells,
        reporter=reporter,
        database=database,
        policy=policy_of(policy),
        offers=offers,
        approvals=Approvals(database=database, situation=situation, offers=offers, bells=bells, clock=clock),
        commands=Commands(offers, reporter),
        executions=Executions(
            database=database,
            state=state,
            analyses=catalogue,
            gate=gate,
            situation=situation,
            reporter=reporter,
            bells=bells,
            clock=clock,
        ),
        airlock=Airlock(database=database, gate=gate, bells=bells, clock=clock),
        scheduler=Scheduler(
            database=database,
            policy=current,
            reporter=reporter,
            bells=bells,
            clock=clock,
            queue=queue or RunQueue(keep, lambda: held[0].depth),
            premises=premises or workers,
            may_start=lambda: not DrainFile(state.path).is_set(),
        ),
        keeper=TrustKeeper(folder=state.trust, book=trust, catalogue=catalogue, database=database, clock=clock),
    )
    held.append(bench)
    if trusted:
        bench.trust_now()
    (dataset,) = (name for name in world.directory.projects[0].datasets if name.startswith(f"{NODE}/"))
    name = dataset.removeprefix(f"{NODE}/")
    database._transact(partial(_seed, dataset=name, snapshot=snapshot, approved=approved))
    return bench


def make_snapshot(folder: Path) -> Path:
    """Make a snapshot of empty files, which is ``SNAPSHOT``, in ``folder``; return it."""
    folder.mkdir(parents=True)
    for name in SNAPSHOT_FILES:
        (folder / name).touch()
    (folder / SNAPSHOT_FILE).write_bytes(_RECORD)
    return folder


def _seed(session: Session, dataset: str, snapshot: Path, *, approved: bool) -> None:
    found_store(session, str(uuid4()))
    if session.get(DatasetRow, dataset) is not None:
        return
    if approved:
        approval = standing()
        keep_approval(session, approved_by(approval), approval, START)
    session.add(
        DatasetRow(
            dataset_id=dataset,
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
