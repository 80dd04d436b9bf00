"""What the audit logs' files prove of a job: the truth, and never anything else."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa.contract.digests import canonical, digest
from hansa.contract.directory import Directory, DirectoryNode
from hansa.contract.errors import HansaError, Reason
from hansa.contract.log_evidence import (
    CHECKPOINT_FILE,
    ENTRIES_FILE,
    PROOFS_FILE,
    RELEASED,
    SUBMITTED,
    LoggedEntries,
    LoggedEntry,
    LoggedJob,
    LoggedProof,
    LoggedProofs,
    LoggedRelease,
    NodeProof,
    file_bytes,
    logged_release,
    logged_submission,
    node_checkpoint_file,
    node_proof_file,
    verify_log_evidence,
)
from hansa.contract.merkle import Frontier, inclusion_proof, leaf_hash
from hansa.contract.notes import Checkpoint, Note, coordinator_origin, cosign, node_origin, sign_checkpoint
from hansa.contract.raw_keys import key_text

NODES = ("FI", "ES", "GB")
KEYS = {name: Ed25519PrivateKey.generate() for name in (*NODES, "log")}
JOB, RUN = "11111111-1111-1111-1111-111111111111", "a" * 32
JOB_DIGEST, STATEMENT, LEFT = (digest(word) for word in (b"job", b"statement", b"summary"))


class Tree:
    """A log in memory."""

    def __init__(self, *bodies: bytes) -> None:
        self.nodes: dict[tuple[int, int], bytes] = {}
        self.bodies, tree = bodies, Frontier()
        for body in bodies:
            self.nodes.update({(n.level, n.index): n.hash for n in tree.append(leaf_hash(body))})
        self.root, self.size = tree.root(), tree.size

    def hashes(self, index: int) -> tuple[str, ...]:
        proof = inclusion_proof(index, self.size, lambda level, at: self.nodes[level, at])
        return tuple(one.hex() for one in proof)


def entry(action: str, facts: dict[str, Any]) -> bytes:
    return canonical({"v": 2, "action": action, "facts": facts})


def directory() -> Directory:
    nodes = tuple(
        DirectoryNode(
            node=node,
            organisation="org",
            signing_key=key_text(KEYS[node].public_key()),
            agreement_key=key_text(X25519PrivateKey.generate().public_key()),
        )
        for node in NODES
    )
    log_key = key_text(KEYS["log"].public_key())
    return Directory(federation="demo", version=1, coordinator_log_key=log_key, nodes=nodes, witnesses=("FI", "ES"))


@dataclass
class Evidence:
    """True files of one job with one release, and what they must show."""

    files: dict[str, bytes]
    job: LoggedJob
    directory: Directory


def coordinator_files(*cosigners: str) -> dict[str, bytes]:
    submission = entry(SUBMITTED, logged_submission(JOB, JOB_DIGEST))
    release = entry(RELEASED, logged_release(JOB, "FI", RUN, STATEMENT))
    other = [entry("node_invited", {"node": f"N{number}"}) for number in range(6)]
    tree = Tree(*other[:2], submission, *other[2:4], release, *other[4:])
    at = Checkpoint(coordinator_origin("demo"), tree.size, tree.root)
    lines = [cosign(at, name=node_origin("demo", node), key=KEYS[node], seconds=9) for node in cosigners]
    proofs = tuple(LoggedProof(index=index, hashes=tree.hashes(index)) for index in (2, 5))
    return {
        CHECKPOINT_FILE: sign_checkpoint(at, KEYS["log"]).plus(*lines).to_bytes(),
        ENTRIES_FILE: file_bytes(
            LoggedEntries(entries=tuple(LoggedEntry(index=i, body=tree.bodies[i].decode()) for i in (2, 5)))
        ),
        PROOFS_FILE: file_bytes(LoggedProofs(size=tree.size, proofs=proofs)),
    }


def node_files(body: bytes) -> dict[str, bytes]:
    tree = Tree(b"first", body, b"last")
    at = Checkpoint(node_origin("demo", "FI"), tree.size, tree.root)
    line = cosign(at, name=coordinator_origin("demo"), key=KEYS["log"], seconds=9)
    note: Note = sign_checkpoint(at, KEYS["FI"]).plus(line)
    proof = NodeProof(size=tree.size, index=1, body=body.decode(), hashes=tree.hashes(1))
    return {node_checkpoint_file("FI"): note.to_bytes(), node_proof_file("FI"): file_bytes(proof)}


def evidence(*cosigners: str) -> Evidence:
    body = entry(RELEASED, {"run": RUN, "job": JOB, "digest": LEFT})
    release = LoggedRelease(run_id=RUN, digest=LEFT, statement=STATEMENT, index=1, leaf_hash=leaf_hash(body).hex())
    job = LoggedJob(job_id=JOB, job_digest=JOB_DIGEST, releases={"FI": release})
    return Evidence({**coordinator_files(*cosigners), **node_files(body)}, job, directory())


def refused(found: Evidence, field: str) -> None:
    with pytest.raises(HansaError) as caught:
        verify_log_evidence(found.files, found.directory, found.job)
    assert (caught.value.reason, caught.value.field) == (Reason.EVIDENCE_INVALID, field)


def test_true_evidence_with_two_witnesses_lacks_nothing() -> None:
    found = evidence("FI", "ES")
    findings = verify_log_evidence(found.files, found.directory, found.job)
    assert (findings.missing, findings.witnesses, findings.needed) == ((), ("ES", "FI"), 2)
    assert (findings.size, findings.entries, findings.nodes) == (8, 2, ("FI",))


def test_a_node_that_is_no_witness_counts_for_none() -> None:
    found = evidence("FI", "GB")
    findings = verify_log_evidence(found.files, found.directory, found.job)
    assert findings.witnesses == ("FI",)
    assert findings.missing == ("1 more witnesses of the coordinator's log",)
    assert not verify_log_evidence(found.files, found.directory, found.job, needed=1).missing


TRUE = evidence("FI", "ES")


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(TRUE.files)), st.data())
def test_any_one_flipped_bit_is_found_and_its_file_named(path: str, data: st.DataObject) -> None:
    changed = bytearray(TRUE.files[path])
    place = data.draw(st.integers(0, len(changed) * 8 - 1))
    changed[place // 8] ^= 1 << place % 8
    # A checkpoint and what hangs on it: one of the two is named.
    group = {node_checkpoint_file("FI"), node_proof_file("FI")} if "FI" in path else set(TRUE.files)
    with pytest.raises(HansaError) as caught:
        verify_log_evidence({**TRUE.files, path: bytes(changed)}, TRUE.directory, TRUE.job)
    assert caught.value.reason is Reason.EVIDENCE_INVALID
    assert caught.value.field in group


@pytest.mark.parametrize("gone", sorted(TRUE.files))
def test_what_is_not_there_is_said_or_refused_but_never_passes(gone: str) -> None:
    files = {path: data for path, data in TRUE.files.items() if path != gone}
    try:
        missing = verify_log_evidence(files, TRUE.directory, TRUE.job).missing
    except HansaError as error:
        missing = (error.field,)
    assert missing


def test_no_files_at_all_prove_nothing_and_are_no_fault() -> None:
    findings = verify_log_evidence({}, TRUE.directory, TRUE.job)
    assert findings.nodes == ()
    assert len(findings.missing) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"job_digest": digest(b"another job")}, "the entry of the job's submission"),
        ({"job_id": "22222222-2222-2222-2222-222222222222"}, "the entry of the job's submission"),
    ],
)
def test_entries_of_another_job_are_not_this_ones(change: dict[str, Any], words: str) -> None:
    missing = verify_log_evidence(TRUE.files, TRUE.directory, replace(TRUE.job, **change)).missing
    assert words in missing


def test_another_statement_than_the_logged_one_is_missing_in_the_log() -> None:
    release = replace(TRUE.job.releases["FI"], statement=digest(b"another"))
    job = replace(TRUE.job, releases={"FI": release})
    missing = verify_log_evidence(TRUE.files, TRUE.directory, job).missing
    assert missing == ("the coordinator's entry of FI's release",)


@pytest.mark.parametrize(
    "change", [{"index": 0}, {"leaf_hash": "00" * 32}, {"digest": digest(b"other bytes")}, {"run_id": "b" * 32}]
)
def test_a_nodes_proof_of_another_release_is_refused(change: dict[str, Any]) -> None:
    job = replace(TRUE.job, releases={"FI": replace(TRUE.job.releases["FI"], **change)})
    refused(Evidence(TRUE.files, job, TRUE.directory), node_proof_file("FI"))


def test_a_node_checkpoint_without_the_coordinators_cosignature_is_refused() -> None:
    path = node_checkpoint_file("FI")
    bare = TRUE.files[path].rsplit("—".encode(), 1)[0]
    refused(Evidence({**TRUE.files, path: bare}, TRUE.job, TRUE.directory), path)


def test_a_log_signed_by_another_key_is_refused() -> None:
    other = TRUE.directory.model_copy(
        update={"coordinator_log_key": key_text(Ed25519PrivateKey.generate().public_key())}
    )
    refused(Evidence(TRUE.files, TRUE.job, other), CHECKPOINT_FILE)


def test_an_entry_that_names_more_than_texts_and_numbers_is_refused() -> None:
    body = json.dumps({"action": RELEASED, "facts": {"run": [RUN]}}).encode()
    release = replace(TRUE.job.releases["FI"], leaf_hash=leaf_hash(body).hex())
    files = {**TRUE.files, **node_files(body)}
    job = replace(TRUE.job, releases={"FI": release})
    refused(Evidence(files, job, TRUE.directory), node_proof_file("FI"))
