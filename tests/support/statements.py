"""Release statements as a node signs them, with whatever a test changes."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.contract import envelope
from hansa.contract.digests import digest
from hansa.contract.envelope import Signed
from hansa.contract.ids import run_id
from hansa.contract.job import parse_job
from hansa.contract.receipt import RULES, subject_name
from hansa.contract.statement import Decider, LogPlace, Release, RuleOutcome, Statement, Subject, SubjectDigest


def make_statement(payload: bytes, node: str, content: bytes, /, *, key: Ed25519PrivateKey, **changes: Any) -> Signed:
    """Return the statement of ``node`` that ``content`` left for the job in ``payload``.

    ``changes`` replace fields of the predicate, ``subject`` the subject's name.
    """
    spec = parse_job(payload)
    ref = spec.dataset_at(node)
    name = changes.pop("subject", subject_name(spec))
    values: dict[str, Any] = {
        "federation": spec.federation,
        "node": node,
        "job_id": spec.job_id,
        "job_digest": digest(payload),
        "round": 1,
        "run_id": run_id(spec.job_id, node, 1),
        "attempt": 1,
        "execution": 1,
        "analysis": spec.analysis,
        "dataset": ref.dataset,
        "snapshot": ref.snapshot,
        "policy_digest": digest(b"policy"),
        "directory_version": spec.directory_version,
        "release_class": "auto",
        "checks": (RuleOutcome(rule="cohort", outcome="pass"),),
        "approvals": (digest(b"approval"),),
        "deciders": (Decider(by=RULES),),
        "recipient_key": spec.recipient_key,
        "released_at": spec.not_before + timedelta(minutes=1),
        "log": LogPlace(index=0, leaf_hash="0" * 64),
    }
    release = Release.model_validate({**values, **changes})
    left = SubjectDigest(sha256=hashlib.sha256(content).hexdigest())
    statement = Statement(subject=(Subject(name=name, digest=left),), predicate=release)
    return envelope.sign(envelope.STATEMENT_TYPE, statement.to_bytes(), key_id=node, key=key)
