"""Who may call what, how large, how often: one row per method, no row no call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coordinator.domain.authorisation import (
    END_JOB,
    OPERATORS,
    OVERSEERS,
    PEOPLE,
    READ_RESULT,
    SEE_EVIDENCE,
    SEE_JOB,
    SUBMIT_JOB,
    Bearer,
    Outsider,
    Rule,
)
from hansa.contract.limits import CHUNK_BYTES, CSR_BYTES, JOB_BYTES, MESSAGE_BYTES

_SMALL: Final = 8 << 10
_FRAME: Final = 4 << 10

_NODE: Final[frozenset[Bearer]] = frozenset({Outsider.NODE})
_GUEST: Final[frozenset[Bearer]] = frozenset({Outsider.GUEST})
_OF_NODES: Final = Rule(any_owner=_NODE, changes=True)


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    """The rules of one method.

    Attributes:
        rule: who may call it, and about whose things. ``rule.changes``: its
            request has a ``request_id`` or is safe to repeat by itself.
        max_bytes: largest message of a request.
        per_minute: calls of one caller, also as a burst.
        at_once: calls of one caller under way at the same time.
    """

    rule: Rule
    max_bytes: int = _SMALL
    per_minute: int = 600
    at_once: int = 64


def _read(roles: frozenset[Bearer], per_minute: int = 600) -> MethodPolicy:
    return MethodPolicy(Rule(any_owner=roles), per_minute=per_minute)


def _change(roles: frozenset[Bearer], max_bytes: int = _SMALL, per_minute: int = 600) -> MethodPolicy:
    return MethodPolicy(Rule(any_owner=roles, changes=True), max_bytes=max_bytes, per_minute=per_minute)


_JOBS: Final = "/hansa.v1.JobService/"
_CATALOGUE: Final = "/hansa.v1.CatalogueService/"
_ADMIN: Final = "/hansa.v1.AdminService/"
_NODES: Final = "/hansa.v1.NodeService/"
_TRUST: Final = "/hansa.v1.TrustService/"

METHOD_POLICY: Final[Mapping[str, MethodPolicy]] = {
    f"{_JOBS}SubmitJob": MethodPolicy(SUBMIT_JOB, max_bytes=JOB_BYTES + _FRAME),
    f"{_JOBS}GetJob": MethodPolicy(SEE_JOB, per_minute=3000),
    f"{_JOBS}ListJobs": MethodPolicy(SEE_JOB),
    f"{_JOBS}WatchJob": MethodPolicy(SEE_JOB, at_once=32),
    f"{_JOBS}CancelJob": MethodPolicy(END_JOB),
    # Answers of up to a summary's size lie in our memory until they were read.
    f"{_JOBS}GetResult": MethodPolicy(READ_RESULT, per_minute=300, at_once=4),
    f"{_JOBS}GetEvidence": MethodPolicy(SEE_EVIDENCE, per_minute=60, at_once=4),
    f"{_CATALOGUE}ListAnalyses": _read(PEOPLE),
    f"{_CATALOGUE}GetAnalysis": _read(PEOPLE),
    f"{_CATALOGUE}ListDatasets": _read(PEOPLE),
    f"{_CATALOGUE}ListNodes": _read(PEOPLE),
    f"{_ADMIN}ListPersons": _read(OPERATORS),
    f"{_ADMIN}InviteNode": _change(OPERATORS),
    f"{_ADMIN}ConfirmNode": _change(OPERATORS),
    f"{_ADMIN}SuspendNode": _change(OPERATORS),
    f"{_ADMIN}ResumeNode": _change(OPERATORS),
    f"{_ADMIN}ReconcileNode": _change(OPERATORS),
    f"{_ADMIN}RevokeNode": _change(OPERATORS),
    f"{_ADMIN}ListProposals": _read(OPERATORS),
    f"{_ADMIN}WithdrawProposal": _change(OPERATORS),
    f"{_ADMIN}PublishTrust": _change(OPERATORS, max_bytes=CHUNK_BYTES + _FRAME, per_minute=30),
    f"{_ADMIN}ListAudit": _read(OVERSEERS),
    f"{_ADMIN}ListAuditLeaves": _read(OVERSEERS, per_minute=3000),
    f"{_ADMIN}GetCheckpoint": _read(OVERSEERS),
    f"{_ADMIN}ProveInclusion": _read(OVERSEERS),
    f"{_ADMIN}ProveConsistency": _read(OVERSEERS),
    # A refresh after a long absence takes one call per file of the repository.
    f"{_TRUST}GetMetadata": _read(PEOPLE | _NODE, per_minute=1200),
    f"{_TRUST}GetTarget": _read(PEOPLE | _NODE, per_minute=3000),
    # A guest's secret has 256 bits; the rate spares our processor, not the secret.
    "/hansa.v1.EnrolmentService/Enrol": _change(_GUEST, max_bytes=CSR_BYTES + _FRAME, per_minute=120),
    # One session stands and one takes over; the others are those whose end the coordinator has not seen yet.
    f"{_NODES}Connect": MethodPolicy(_OF_NODES, max_bytes=MESSAGE_BYTES, per_minute=120, at_once=4),
    f"{_NODES}UploadSummary": MethodPolicy(_OF_NODES, max_bytes=CHUNK_BYTES + _FRAME, at_once=4),
    f"{_NODES}RenewCertificate": _change(_NODE, max_bytes=CSR_BYTES + _FRAME, per_minute=30),
}
