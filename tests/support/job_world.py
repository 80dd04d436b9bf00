"""A coordinator's store with people, nodes, datasets and an analysis, for tests of jobs."""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session

from coordinator.api.frames import command_bytes
from coordinator.domain.membership import NodeEvent
from coordinator.domain.records import JobRecord
from coordinator.services.collection import Announced, Upload, collect
from coordinator.services.desk import Desk
from coordinator.services.jobs import Asker
from coordinator.services.nodes import Act
from coordinator.services.submission import submit_job
from coordinator.services.trust import TrustDuty, begin_trust, put_in_force
from coordinator.store.catalogue import Dataset, DatasetRepository
from coordinator.store.database import Database
from coordinator.store.federation import create_federation
from coordinator.store.jobs import JobRepository
from coordinator.store.nodes import NodeRepository
from coordinator.store.schema import migrate
from coordinator.store.trust import TrustState
from hansa.contract import envelope
from hansa.contract.digests import bundle_digest, digest
from hansa.contract.directory import Role
from hansa.contract.envelope import Signed
from hansa.contract.ids import NodeId, run_id
from hansa.trust.files import RepositoryFiles
from tests.support.statements import make_statement
from tests.support.trust_world import PROJECT, TrustWorld, build_trust_world

START = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
NODES = ("FI", "ES", "IT")
VARIANT = "15:28120472:A:G"
MANIFEST = {
    "name": "allele-frequency",
    "version": "1.0",
    "title": "Allele frequency",
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
            name: {"dtype": "int64", "axes": ["variant", "stratum"], "merge": "sum", "released": released}
            for name, released in (
                ("people", True),
                ("an", True),
                ("ac", True),
                ("carriers", False),
                ("others", False),
            )
        },
    },
    "disclosure": "allele-counts",
}
BUNDLE = {"manifest.json": json.dumps(MANIFEST).encode(), "Snakefile": b"rule all: ...\n"}
BUNDLE_DIGEST = bundle_digest(BUNDLE)


class ManualClock:
    """A clock that moves only when it is told to."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        self.now += by


def snapshot(node: str) -> str:
    return digest(f"snapshot of {node}".encode())


def job_trust(now: datetime = START, nodes: Sequence[str] = NODES, **changes: Any) -> TrustWorld:
    """Return a federation's trust whose one project allows ``BUNDLE`` on a dataset at each node."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in BUNDLE.items():
            Path(folder, name).write_bytes(content)
        return build_trust_world(Path(folder), datasets={n: f"{n}-aisnp" for n in nodes}, now=now, **changes)


@dataclass
class JobWorld:
    """The parts that tests of jobs use; ``ada`` and ``bob`` are researchers."""

    database: Database
    clock: ManualClock
    trust: TrustWorld
    desk: Desk = field(init=False)

    def __post_init__(self) -> None:
        self.desk = Desk(self.database, self.clock, command_bytes)

    @property
    def keys(self) -> Mapping[str, Ed25519PrivateKey]:
        return self.trust.keys

    @property
    def duty(self) -> TrustDuty:
        return TrustDuty("demo", self.trust.online, self.trust.directory.coordinator_log_key)

    async def publish(self, *, actor: str = "op1") -> TrustState:
        """Put in force what the trust world has published."""
        turn = self.desk.turn()
        files = RepositoryFiles(
            {name: data for name, data in self.trust.files.metadata.items() if "root" in name or "targets" in name},
            self.trust.files.targets,
        )
        act = Act(actor, turn.now)
        return await self.desk.commit(partial(put_in_force, files=files, duty=self.duty, act=act, turn=turn))

    def spec(self, **changes: Any) -> dict[str, Any]:
        """Return a good request; ``changes`` replace fields."""
        return {
            "v": 1,
            "federation": "demo",
            "directory_version": self.trust.directory.version,
            "job_id": str(uuid.uuid4()),
            "nonce": uuid.uuid4().hex,
            "submitter": "ada",
            "project": PROJECT,
            "analysis": {"name": "allele-frequency", "version": "1.0", "digest": BUNDLE_DIGEST},
            "parameters": {"variants": VARIANT},
            "datasets": [{"node": n, "dataset": f"{n}-aisnp", "snapshot": snapshot(n)} for n in NODES],
            "quorum": 3,
            "not_before": self.clock().isoformat(),
            "not_after": (self.clock() + timedelta(minutes=30)).isoformat(),
            **changes,
        }

    def signed(self, *, signer: str = "ada", **changes: Any) -> Signed:
        payload = json.dumps(self.spec(**changes)).encode()
        return envelope.sign(envelope.JOB_TYPE, payload, key_id=signer, key=self.keys[signer])

    async def submit(self, signed: Signed | None = None, *, caller: str = "ada", **changes: Any) -> JobRecord:
        turn, sent = self.desk.turn(), signed or self.signed(**changes)
        return await self.desk.commit(lambda session: submit_job(session, signed=sent, caller=caller, turn=turn))

    async def job(self, job_id: str) -> JobRecord:
        return await self.desk.read(lambda session: JobRepository(session).get(job_id))

    async def statement(self, node: str, job: JobRecord, content: bytes, /, **changes: Any) -> Signed:
        """Return the statement of ``node`` that ``content`` left for the job."""
        payload = (await self.desk.read(lambda session: JobRepository(session).envelope(job.job_id))).payload
        return make_statement(payload, node, content, key=changes.pop("key", self.keys[node]), **changes)

    async def upload(self, node: str, job: JobRecord, content: bytes, *, attempt: int = 1) -> None:
        announced = Announced(
            node=node,
            run_id=run_id(job.job_id, node, 1),
            attempt=attempt,
            digest=hashlib.sha256(content).digest(),
            size=len(content),
        )
        upload = Upload(announced)
        upload.add(content)
        await collect(self.desk, upload)


ADA = Asker("ada", frozenset({Role.RESEARCHER}))
BOB = Asker("bob", frozenset({Role.RESEARCHER}))
OPERATOR = Asker("op1", frozenset({Role.FEDERATION_OPERATOR}))
AUDITOR = Asker("aud", frozenset({Role.AUDITOR}))


def make_world(database: Database, nodes: Sequence[str] = NODES) -> JobWorld:
    """Return a world in an empty database."""
    world = JobWorld(database, ManualClock(), job_trust(nodes=nodes))
    migrate(database)
    database.run_sync(lambda session: _furnish(session, world, nodes))
    return world


def _furnish(session: Session, world: JobWorld, nodes: Sequence[str]) -> None:
    create_federation(session, name="demo", store_uuid=str(uuid.uuid4()))
    begin_trust(session, world.trust.files, world.duty, Act("test", world.clock()))
    for node in nodes:
        add_node(session, node)
        DatasetRepository(session).replace(node, [Dataset(f"{node}-aisnp", node, "GRCh37", snapshot(node))])


def add_node(session: Session, node: str) -> None:
    """Make ``node`` an active node."""
    repository = NodeRepository(session)
    repository.add(NodeId(node))
    repository.apply(node, NodeEvent.REDEEM)
    repository.apply(node, NodeEvent.CONFIRM)


def released(people: int | None = 99, an: int | None = 198, ac: int | None = 40) -> bytes:
    """Return a released summary of the one variant; with None it says nothing at all."""
    labels = [VARIANT] if an is not None else []
    values = {"people": people, "an": an, "ac": ac}
    value = {
        "v": 1,
        "axes": {"variant": labels, "stratum": ["all"]},
        "notes": {},
        "arrays": {
            name: {
                "dtype": "int64",
                "axes": ["variant", "stratum"],
                "merge": "sum",
                "values": [figure] if labels else [],
            }
            for name, figure in values.items()
        },
    }
    return json.dumps(value).encode()


@contextmanager
def open_world(url: str, nodes: Sequence[str] = NODES) -> Iterator[JobWorld]:
    """Hand out a world in the empty database at ``url``, and close it."""
    database = Database.open(url)
    try:
        yield make_world(database, nodes)
    finally:
        database.close()
