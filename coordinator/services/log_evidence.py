"""What the audit logs prove of a job, as files for the researcher (docs/reference/evidence.md)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.services.witnessing import LogKeeper, published_checkpoint
from coordinator.store.audit import AuditRepository
from coordinator.store.jobs import JobRepository
from coordinator.store.witnesses import ReleaseProof, ReleaseProofRepository
from hansa.contract.log_evidence import (
    CHECKPOINT_FILE,
    ENTRIES_FILE,
    PROOFS_FILE,
    LoggedEntries,
    LoggedEntry,
    LoggedProof,
    LoggedProofs,
    NodeProof,
    file_bytes,
    node_checkpoint_file,
    node_proof_file,
)
from hansa.contract.notes import parse_note


def log_evidence(session: Session, keeper: LogKeeper, job_id: str, now: datetime) -> Mapping[str, bytes]:
    """Return the logs' part of a job's evidence, as far as it is there yet.

    The coordinator's entries on the job that the newest sufficiently cosigned
    checkpoint covers, with their proofs; and of each node, what it has sent.
    """
    audit = AuditRepository(session)
    leaves = audit.leaves_of(job_id)
    files = dict(_of_nodes(session, job_id))
    note = published_checkpoint(session, keeper, now, covering=leaves[-1].index + 1 if leaves else 0)
    covered = [] if note is None else [leaf for leaf in leaves if leaf.index < note.checkpoint.size]
    if note is None or not covered:
        return files
    size = note.checkpoint.size
    entries = tuple(LoggedEntry(index=leaf.index, body=leaf.body.decode()) for leaf in covered)
    proofs = tuple(
        LoggedProof(index=leaf.index, hashes=tuple(one.hex() for one in audit.inclusion(leaf.index, size)))
        for leaf in covered
    )
    return {
        **files,
        CHECKPOINT_FILE: note.to_bytes(),
        ENTRIES_FILE: file_bytes(LoggedEntries(entries=entries)),
        PROOFS_FILE: file_bytes(LoggedProofs(size=size, proofs=proofs)),
    }


def _of_nodes(session: Session, job_id: str) -> Mapping[str, bytes]:
    files: dict[str, bytes] = {}
    proofs = ReleaseProofRepository(session)
    for run in JobRepository(session).get(job_id).runs:
        proof = proofs.get(run.run_id)
        if proof is not None:
            files[node_checkpoint_file(run.node)] = proof.note
            files[node_proof_file(run.node)] = _proof_bytes(proof)
    return files


def _proof_bytes(proof: ReleaseProof) -> bytes:
    return file_bytes(
        NodeProof(
            size=parse_note(proof.note).checkpoint.size,
            index=proof.index,
            body=proof.entry.decode(),
            hashes=tuple(one.hex() for one in proof.proof),
        )
    )
