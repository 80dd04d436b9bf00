"""A federation with an evil coordinator: its trust, one besieged node, and a researcher who signs honest jobs."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from sqlalchemy.orm import Session

import node_agent
from hansa.contract import envelope
from hansa.contract.approval import Approval, JobApproval, StandingApproval
from hansa.contract.digests import digest
from hansa.contract.envelope import APPROVAL_TYPE, JOB_TYPE, Signed, to_json
from hansa.contract.ids import NodeId, run_id
from hansa.contract.job import DatasetRef, JobSpec
from hansa.contract.raw_keys import key_digest
from hansa.runtime.clock import utc_now
from hansa.v1 import node_service_pb2 as wire
from hansa.v1 import types_pb2
from node_agent.config import PINNED_ROOT, AgentConfig, StateFolder, config_text, create_state_folder
from node_agent.durable import write_durably
from node_agent.keys.credential import SERVER_CA, store_credential
from node_agent.policy.file import store_policy
from node_agent.policy.policy import policy_of
from node_agent.store.database import Database
from node_agent.store.models import DatasetRow
from node_agent.store.outbox import found_store
from tests.support.agent import SNAPSHOT, collected, make_snapshot
from tests.support.besieged_node import BesiegedNode, Honest, Outcome
from tests.support.evil_coordinator import EvilCoordinator, Mirror, serving
from tests.support.trust_world import FEDERATION, PROJECT, TrustWorld, build_trust_world
from tests.support.worker_double import WorkerDouble

NODE: Final = NodeId("FI")
RESEARCHER: Final = "ada"
HOLDER: Final = "holder-fi"
VARIANT: Final = "15:28365618:A:G"
_ANALYSIS: Final = Path(node_agent.__file__).parent / "analyses" / "allele_frequency"
_DATASETS: Final = {"FI": "FI-lct", "ES": "ES-lct", "IT": "IT-lct"}


@dataclass
class Siege:
    """What a test needs; ``world`` is what is true, ``evil`` what the node is told, ``node`` what it makes of it."""

    world: TrustWorld
    evil: EvilCoordinator
    node: BesiegedNode

    def spec(self, **changes: Any) -> JobSpec:
        """Return an honest job of ada's for two nodes."""
        now = utc_now()
        values: dict[str, Any] = {
            "federation": FEDERATION,
            "directory_version": self.world.directory.version,
            "job_id": str(uuid4()),
            "nonce": secrets.token_hex(16),
            "submitter": RESEARCHER,
            "project": PROJECT,
            "purpose": "lactase persistence",
            "analysis": self.world.analysis,
            "parameters": {"variants": VARIANT},
            "datasets": tuple(DatasetRef(node=n, dataset=_DATASETS[n], snapshot=SNAPSHOT) for n in (NODE, "ES")),
            "quorum": 2,
            "not_before": now - timedelta(seconds=1),
            "not_after": now + timedelta(minutes=30),
        }
        return JobSpec(**{**values, **changes})

    def sign(self, payload: bytes, *, key_id: str = RESEARCHER, key: Ed25519PrivateKey | None = None) -> Signed:
        """Return ``payload`` as a signed job."""
        return envelope.sign(JOB_TYPE, payload, key_id=key_id, key=key or self.world.keys[key_id])

    def offer(self, spec: JobSpec, signed: Signed | None = None, **changes: Any) -> wire.CommandBody:
        """Return the offer of ``spec``; ``changes`` are fields of the Offer."""
        signed = signed or self.sign(spec.to_bytes())
        values = {"run_id": run_id(spec.job_id, NODE, 1), "job_id": spec.job_id, "round": 1, "attempt": 1}
        body = wire.CommandBody(offer=wire.Offer(**{"job": message_of(signed), **values, **changes}))
        body.issued_at.GetCurrentTime()
        return body

    def honest(self, **changes: Any) -> wire.CommandBody:
        """Return the offer of a fresh honest job, which may run once."""
        spec = self.spec(**changes)
        body = self.offer(spec)
        self.node.honest[body.offer.run_id] = Honest(body.offer.run_id, body.offer.job.payload, self._what(spec))
        return body

    def approve(self, approval: Approval, by: str = HOLDER) -> Signed:
        """Return ``approval`` in its data holder's envelope."""
        return envelope.sign(APPROVAL_TYPE, approval.to_bytes(), key_id=by, key=self.world.keys[by])

    def standing(self, **changes: Any) -> StandingApproval:
        now = utc_now()
        values: dict[str, Any] = {
            "approval_id": str(uuid4()),
            "federation": FEDERATION,
            "node": NODE,
            "project": PROJECT,
            "analysis": self.world.analysis,
            "datasets": (_DATASETS[NODE],),
            "approver": HOLDER,
            "not_before": now - timedelta(seconds=1),
            "not_after": now + timedelta(days=1),
        }
        return StandingApproval(**{**values, **changes})

    def yes_to(self, body: wire.CommandBody) -> JobApproval:
        """Return the yes of the data holder to exactly the job of ``body``."""
        return JobApproval(
            approval_id=str(uuid4()),
            federation=FEDERATION,
            node=NODE,
            job_id=body.offer.job_id,
            job_digest=digest(body.offer.job.payload),
            approver=HOLDER,
            at=utc_now(),
        )

    def mirror(self) -> None:
        """Give the coordinator what the world has in force."""
        self.evil.mirror = Mirror(files_of(self.world))

    async def open(self) -> bytes:
        """Bring the running node to where honest jobs run: trust is in force, its data holder has said yes.

        Return what the node releases of an honest job.
        """
        await self.evil.session()
        await self.node.until(lambda: self.node.trusted() >= self.world.directory.version)
        await self.node.local("add_approval", to_json(self.approve(self.standing())))
        return await self.baseline()

    async def recover(self) -> None:
        """Begin an honest session, whatever the one before was told."""
        self.evil.bend.clear()
        epoch = self.evil.epoch
        await self.evil.hang_up()
        await self.node.until(lambda: self.evil.attached_epoch > epoch)

    async def baseline(self) -> bytes:
        """Let one honest job run; return what was released."""
        assert await self.node.attempt("honest", lambda: self.evil.command(self.honest())) is Outcome.HONEST
        # Not one of the mutants that are counted.
        self.node.outcomes[Outcome.HONEST] -= 1
        self.node.released = self.evil.uploads[-1].content
        return self.node.released

    def _what(self, spec: JobSpec) -> tuple[object, ...]:
        return (
            tuple(sorted(spec.parameters.items())),
            SNAPSHOT.removeprefix("sha256:"),
            self.world.analysis.digest,
            "Snakefile",
        )


def files_of(world: TrustWorld) -> dict[str, bytes]:
    """Return the repository's files by the names of a mirror."""
    metadata = {f"metadata/{name}": data for name, data in world.files.metadata.items()}
    return metadata | {f"targets/{sha256}": data for sha256, data in world.files.targets.items()}


def message_of(signed: Signed) -> types_pb2.Envelope:
    signature = types_pb2.Signature(key_id=signed.key_id, signature=signed.signature)
    return types_pb2.Envelope(payload_type=signed.payload_type, payload=signed.payload, signatures=[signature])


def policy(world: TrustWorld) -> Mapping[str, Any]:
    holder = world.directory.person(HOLDER)
    assert holder is not None
    return {
        "admission": {"submitters": [RESEARCHER], "analyses": [f"{world.analysis.name}@{world.analysis.version}"]},
        "approval": {"data_holders": [f"{HOLDER}={key_digest(holder.signing_key)}"]},
        "release": {"mode": "auto"},
    }


@asynccontextmanager
async def siege(folder: Path) -> AsyncIterator[Siege]:
    """Serve an evil coordinator and lay out a node that joined while it was honest; the agent is not started."""
    world = build_trust_world(_ANALYSIS, datasets=_DATASETS, now=utc_now())
    async with serving(EvilCoordinator(FEDERATION, mirror=Mirror(files_of(world)))) as evil:
        state = create_state_folder(folder / "state")
        config = AgentConfig(federation=FEDERATION, node=NODE, node_endpoint=f"127.0.0.1:{evil.port}")
        _furnish(state, world, evil)
        write_durably(state.config_file, config_text(config).encode())
        database = Database.open(state.database)
        snapshot = make_snapshot(state.datasets / _DATASETS[NODE] / SNAPSHOT.removeprefix("sha256:"))
        await database.run(lambda session: _found(session, snapshot))
        worker = WorkerDouble(state.socket, collected())
        try:
            node = BesiegedNode(state, config, evil, database, worker)
            evil.clock = node.clock
            yield Siege(world, evil, node)
        finally:
            database.close()


def _furnish(state: StateFolder, world: TrustWorld, evil: EvilCoordinator) -> None:
    write_durably(state.keys / SERVER_CA, evil.server_ca.certificate_pem)
    store_credential(state, evil.credential(NODE))
    write_durably(state.keys / "signing.key", pkcs8(world.keys[NODE]))
    state.trust.mkdir(mode=0o700, exist_ok=True)
    write_durably(state.trust / PINNED_ROOT, world.root)
    write_durably(state.keys / "agreement.key", pkcs8(world.recipients[NODE]))
    store_policy(state.policy_file, policy_of(policy(world)))


def _found(session: Session, snapshot: Path) -> None:
    found_store(session, str(uuid4()))
    info = {"people": 99, "people_by_sex": {"female": 61, "male": 38, "unknown": 0}, "variants": 1, "skipped": {}}
    row = DatasetRow(
        dataset_id=_DATASETS[NODE],
        snapshot=SNAPSHOT,
        build="GRCh37",
        folder=str(snapshot),
        info=info,
        added_at=utc_now(),
    )
    session.add(row)


def pkcs8(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
