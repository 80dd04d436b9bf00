"""The evidence of a whole job, made by the keys of a ``TrustWorld`` without any daemon."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hansa.contract import envelope
from hansa.contract.digests import canonical, digest
from hansa.contract.directory import COORDINATOR
from hansa.contract.envelope import Signed
from hansa.contract.ids import run_id
from hansa.contract.job import DatasetRef, JobSpec
from hansa.contract.log_evidence import (
    CHECKPOINT_FILE,
    ENTRIES_FILE,
    PROOFS_FILE,
    RELEASED,
    SUBMITTED,
    LoggedEntries,
    LoggedEntry,
    LoggedProof,
    LoggedProofs,
    NodeProof,
    file_bytes,
    logged_release,
    logged_submission,
    node_checkpoint_file,
    node_proof_file,
)
from hansa.contract.manifest import parse_manifest
from hansa.contract.merkle import Frontier, inclusion_proof, leaf_hash
from hansa.contract.notes import Checkpoint, coordinator_origin, cosign, node_origin, sign_checkpoint
from hansa.contract.raw_keys import agreement_key, key_text
from hansa.contract.sealing import SealContext, seal
from hansa.contract.statement import LogPlace, Statement
from hansa.contract.states import JobState, RunState
from hansa.contract.summary import parse_summary
from hansa.sdk.evidence import JOB_FILE, METADATA, RESULT_FILE, TARGETS, statement_file, summary_file
from hansa.sdk.verification import Verifier
from hansa.statistics.result import JobEnd, RunEnd, result_bytes
from tests.support.statements import make_statement
from tests.support.trust_world import PROJECT, TrustWorld, build_trust_world

ALLELE_FREQUENCY: Final = Path(__file__).parents[2] / "node_agent" / "analyses" / "allele_frequency"
VARIANT: Final = "15:28120472:A:G"
JOB: Final = "0190a5a0-0000-7000-8000-000000000001"
OTHER_JOB: Final = "0190a5a0-0000-7000-8000-000000000002"


class TestLog:
    """A log in memory that gives checkpoints and proofs."""

    __test__ = False

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._frontier = Frontier()
        self._hashes: dict[tuple[int, int], bytes] = {}

    def append(self, body: Mapping[str, Any]) -> int:
        """Append an entry; return its index."""
        data = canonical(body)
        for node in self._frontier.append(leaf_hash(data)):
            self._hashes[(node.level, node.index)] = node.hash
        self.bodies.append(data)
        return len(self.bodies) - 1

    def checkpoint(self, origin: str) -> Checkpoint:
        """Return where the log stands."""
        return Checkpoint(origin, len(self.bodies), self._frontier.root())

    def proof(self, index: int) -> tuple[str, ...]:
        """Return the proof of an entry, in hexadecimal."""
        hashes = inclusion_proof(index, len(self.bodies), lambda level, at: self._hashes[(level, at)])
        return tuple(one.hex() for one in hashes)


def summary(people: int = 99, ac: int = 40, variants: int = 1) -> bytes:
    """Return a released summary of so many variants, with the same figures for each."""
    values = {"people": people, "an": 2 * people, "ac": ac}
    arrays = {
        name: {"dtype": "int64", "axes": ["variant", "stratum"], "merge": "sum", "values": [figure] * variants}
        for name, figure in values.items()
    }
    axes = {"variant": asked(variants), "stratum": ["all"]}
    return json.dumps({"v": 1, "axes": axes, "notes": {}, "arrays": arrays}, separators=(",", ":")).encode()


def asked(variants: int) -> list[str]:
    """Return the names of so many variants."""
    return [VARIANT, *(f"15:{28120472 + place}:A:G" for place in range(1, variants))]


@dataclass
class EvidenceWorld:
    """Makes evidence; change what a part says before ``files`` to make a forgery by who holds the keys."""

    trust: TrustWorld
    nodes: tuple[str, ...]
    sealed: bool = False
    silent: tuple[str, ...] = ()
    job_id: str = JOB
    variants: int = 1
    logs: dict[str, TestLog] = field(default_factory=dict)

    @property
    def verifier(self) -> Verifier:
        """Who verifies: the pinned root, and the researcher's key."""
        return Verifier(root=self.trust.root, recipient_key=self.recipient if self.sealed else None)

    @property
    def recipient(self) -> X25519PrivateKey:
        """The researcher's own key."""
        return self.trust.recipients["ada"]

    def spec(self, **changes: Any) -> JobSpec:
        """Return the job."""
        values: dict[str, Any] = {
            "federation": self.trust.directory.federation,
            "directory_version": self.trust.directory.version,
            "job_id": self.job_id,
            "nonce": "0" * 32,
            "submitter": "ada",
            "project": PROJECT,
            "analysis": self.trust.analysis,
            "parameters": {"variants": ",".join(asked(self.variants))},
            "datasets": tuple(
                DatasetRef(node=node, dataset=f"{node}-aisnp", snapshot=digest(node.encode())) for node in self.nodes
            ),
            "quorum": len(self.nodes) - len(self.silent),
            "recipient_key": key_text(self.recipient.public_key()) if self.sealed else None,
            "not_before": self.trust.now,
            "not_after": self.trust.now + timedelta(hours=1),
        }
        return JobSpec(**{**values, **changes})

    def job(self, **changes: Any) -> Signed:
        """Return the signed job."""
        payload = self.spec(**changes).to_bytes()
        return envelope.sign(envelope.JOB_TYPE, payload, key_id="ada", key=self.trust.keys["ada"])

    def statement(self, job: Signed, node: str, content: bytes, /, **changes: Any) -> Signed:
        """Return a node's signed statement that ``content`` left, with its leaf in the node's log."""
        spec, signer = JobSpec.model_validate_json(job.payload), changes.pop("signer", node)
        run = run_id(spec.job_id, node, 1)
        log = self.logs.setdefault(node, TestLog())
        left = hashlib.sha256(content).hexdigest()
        facts = {"run": run, "job": spec.job_id, "digest": f"sha256:{left}", "decider": "rules"}
        index = log.append({"v": 1, "at": "t", "action": "summary_released", "facts": facts, "subjects": {}})
        place = LogPlace(index=index, leaf_hash=leaf_hash(log.bodies[index]).hex())
        key = self.trust.keys[signer]
        return make_statement(job.payload, node, content, key=key, **{"log": place, **changes})

    def left(self, job: Signed, node: str, plain: bytes) -> bytes:
        """Return what leaves a node: the summary or its sealed form."""
        spec = JobSpec.model_validate_json(job.payload)
        if spec.recipient_key is None:
            return plain
        context = SealContext(run_id(spec.job_id, node, 1), 1, digest(job.payload))
        return seal(plain, agreement_key(spec.recipient_key), context)

    def files(self) -> dict[str, bytes]:
        """Return the evidence of the honest job."""
        job = self.job()
        plain = {
            node: summary(99 + place, 40 + place, self.variants)
            for place, node in enumerate(self.nodes)
            if node not in self.silent
        }
        left = {node: self.left(job, node, content) for node, content in plain.items()}
        statements = {node: self.statement(job, node, content) for node, content in left.items()}
        return self.assemble(job, plain, left, statements)

    def assemble(
        self, job: Signed, plain: Mapping[str, bytes], left: Mapping[str, bytes], statements: Mapping[str, Signed]
    ) -> dict[str, bytes]:
        """Return the evidence of just these parts, with the result and logs that go with them."""
        spec = JobSpec.model_validate_json(job.payload)
        runs = tuple(
            RunEnd(
                node=ref.node,
                dataset=ref.dataset,
                state=RunState.RELEASED if ref.node in statements else RunState.EXPIRED,
                reason="" if ref.node in statements else "DEADLINE_PASSED",
                statement=digest(statements[ref.node].payload) if ref.node in statements else "",
            )
            for ref in spec.datasets
        )
        schema = parse_manifest((ALLELE_FREQUENCY / "manifest.json").read_bytes()).summary
        parts = {node: parse_summary(content, schema, released_only=True) for node, content in plain.items()}
        end = JobEnd(state=JobState.COMPLETED, runs=runs)
        return {
            JOB_FILE: envelope.to_json(job),
            RESULT_FILE: result_bytes(spec, end, {} if spec.recipient_key else parts),
            **{summary_file(node): content for node, content in left.items()},
            **{statement_file(node): envelope.to_json(signed) for node, signed in statements.items()},
            **self.trust_files(),
            **self.log_files(job, statements),
        }

    def trust_files(self) -> dict[str, bytes]:
        """Return the trust repository as evidence has it: what a verifier needs, not every blob."""
        view, files = self.trust.view, self.trust.files
        manifests = {found.files["manifest.json"] for found in view.analyses.values()}
        needed = {sha for path, sha in view.targets.items() if not path.startswith("blobs/")} | manifests
        return {
            **{METADATA + name: data for name, data in view.metadata.items()},
            **{TARGETS + sha: files.targets[sha] for sha in needed},
        }

    def log_files(self, job: Signed, statements: Mapping[str, Signed]) -> dict[str, bytes]:
        """Return the logs' files."""
        spec = JobSpec.model_validate_json(job.payload)
        log, federation = TestLog(), spec.federation
        told: list[tuple[str, Mapping[str, Any]]] = [
            (SUBMITTED, logged_submission(spec.job_id, digest(job.payload))),
            *(
                (RELEASED, logged_release(spec.job_id, node, run_id(spec.job_id, node, 1), digest(signed.payload)))
                for node, signed in statements.items()
            ),
        ]
        for action, facts in told:
            log.append({"v": 1, "at": "t", "action": action, "facts": facts, "actor": "h", "subject": "h"})
        note = sign_checkpoint(log.checkpoint(coordinator_origin(federation)), self.trust.keys[COORDINATOR])
        witnesses = [
            cosign(note.checkpoint, name=node_origin(federation, node), key=self.trust.keys[node], seconds=1)
            for node in self.trust.directory.witnesses[:2]
        ]
        entries = tuple(LoggedEntry(index=i, body=body.decode()) for i, body in enumerate(log.bodies))
        proofs = tuple(LoggedProof(index=i, hashes=log.proof(i)) for i in range(len(log.bodies)))
        found = {
            CHECKPOINT_FILE: note.plus(*witnesses).to_bytes(),
            ENTRIES_FILE: file_bytes(LoggedEntries(entries=entries)),
            PROOFS_FILE: file_bytes(LoggedProofs(size=len(log.bodies), proofs=proofs)),
        }
        for node, signed in statements.items():
            found |= self._node_log(federation, node, Statement.model_validate_json(signed.payload).predicate.log.index)
        return found

    def _node_log(self, federation: str, node: str, index: int) -> dict[str, bytes]:
        log, origin = self.logs[node], node_origin(federation, node)
        note = sign_checkpoint(log.checkpoint(origin), self.trust.keys[node])
        line = cosign(note.checkpoint, name=coordinator_origin(federation), key=self.trust.keys[COORDINATOR], seconds=1)
        proof = NodeProof(size=len(log.bodies), index=index, body=log.bodies[index].decode(), hashes=log.proof(index))
        return {node_checkpoint_file(node): note.plus(line).to_bytes(), node_proof_file(node): file_bytes(proof)}


def build_evidence_world(
    nodes: Sequence[str] = ("FI", "ES", "IT", "SE"),
    *,
    sealed: bool = False,
    silent: Sequence[str] = ("SE",),
    variants: int = 1,
) -> EvidenceWorld:
    """Return a world with the shipped analysis and these nodes."""
    trust = build_trust_world(ALLELE_FREQUENCY, datasets={node: f"{node}-aisnp" for node in nodes})
    return EvidenceWorld(trust, tuple(nodes), sealed=sealed, silent=tuple(silent), variants=variants)
