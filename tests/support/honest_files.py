"""One honest example of each JSON that is signed, with nothing left at its default where it may be set."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from pydantic import BaseModel

from hansa.contract.approval import ApprovalLimits, JobApproval, StandingApproval
from hansa.contract.decision import ReleaseDecision
from hansa.contract.directory import (
    Directory,
    DirectoryNode,
    DirectoryPerson,
    DirectoryProject,
    PassportIssuer,
    Role,
    directory_bytes,
)
from hansa.contract.job import AnalysisRef, DatasetRef, JobSpec
from hansa.contract.release import ReleaseClass
from hansa.contract.review import Authorship, Vote
from hansa.contract.statement import (
    Decider,
    LogPlace,
    Release,
    RuleOutcome,
    Statement,
    Subject,
    SubjectDigest,
)

_WHEN: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
_LATER: Final = datetime(2026, 4, 1, 12, tzinfo=UTC)
_DIGEST: Final = "sha256:" + "ab" * 32
_JOB_ID: Final = "01990000-0000-7000-8000-000000000001"
_RUN_ID: Final = "ab" * 16
_ANALYSIS: Final = AnalysisRef(name="allele-frequency", version="1.0", digest=_DIGEST)


def _key(number: int) -> str:
    return base64.b64encode(bytes([number]) * 32).decode()


_JOB: Final = JobSpec(
    federation="demo",
    directory_version=1,
    job_id=_JOB_ID,
    nonce="ab" * 16,
    submitter="ada",
    project="lct",
    purpose="a question",
    analysis=_ANALYSIS,
    parameters={"variants": "15:28365618:A:G"},
    datasets=tuple(DatasetRef(node=node, dataset=f"{node}-lct", snapshot=_DIGEST) for node in ("FI", "ES")),
    quorum=2,
    release_class=ReleaseClass.MANUAL,
    recipient_key=_key(9),
    passports={"FI": _DIGEST},
    not_before=_WHEN,
    not_after=_LATER,
)
_DIRECTORY: Final = Directory(
    federation="demo",
    version=3,
    coordinator_log_key=_key(1),
    people=(
        DirectoryPerson(
            name="ada", organisation="uh", signing_key=_key(2), recipient_key=_key(9), roles=(Role.RESEARCHER,)
        ),
        DirectoryPerson(
            name="dora", organisation="fi-hub", signing_key=_key(3), roles=(Role.DATA_HOLDER,), nodes=("FI",)
        ),
    ),
    nodes=(
        DirectoryNode(node="FI", organisation="fi-hub", signing_key=_key(4), agreement_key=_key(5)),
        DirectoryNode(node="ES", organisation="es-hub", signing_key=_key(6), agreement_key=_key(7)),
    ),
    projects=(
        DirectoryProject(
            project="lct",
            researchers=("ada",),
            datasets=("FI/FI-lct", "ES/ES-lct"),
            analyses=("allele-frequency@1.0",),
            valid_until=_LATER,
            sealed=True,
        ),
    ),
    issuers=(PassportIssuer(issuer="https://issuer.example", jwks={"keys": []}),),
    witnesses=("FI", "ES"),
)
_JOB_APPROVAL: Final = JobApproval(
    approval_id=_JOB_ID, federation="demo", node="FI", job_id=_JOB_ID, job_digest=_DIGEST, approver="dora", at=_WHEN
)
_STANDING: Final = StandingApproval(
    approval_id=_JOB_ID,
    federation="demo",
    node="FI",
    project="lct",
    analysis=_ANALYSIS,
    datasets=("FI-lct",),
    limits=ApprovalLimits(max_variants=10, max_region_bases=1000),
    approver="dora",
    not_before=_WHEN,
    not_after=_LATER,
)
_STATEMENT: Final = Statement(
    _type="https://in-toto.io/Statement/v1",
    subject=(Subject(name="summary", digest=SubjectDigest(sha256="ab" * 32)),),
    predicateType="urn:hansa:release:v1",
    predicate=Release(
        federation="demo",
        node="FI",
        job_id=_JOB_ID,
        job_digest=_DIGEST,
        round=1,
        run_id=_RUN_ID,
        attempt=1,
        execution=1,
        analysis=_ANALYSIS,
        dataset="FI-lct",
        snapshot=_DIGEST,
        policy_digest=_DIGEST,
        directory_version=3,
        release_class=ReleaseClass.MANUAL,
        checks=(RuleOutcome(rule="cohort", outcome="pass"),),
        approvals=(_DIGEST,),
        deciders=(Decider(by="disclosure-rules"), Decider(by="otto", decision=_DIGEST)),
        recipient_key=_key(9),
        released_at=_WHEN,
        log=LogPlace(index=4, leaf_hash="ab" * 32),
    ),
)

EXAMPLES: Final[Mapping[type[BaseModel], bytes]] = {
    JobSpec: _JOB.to_bytes(),
    Directory: directory_bytes(_DIRECTORY),
    Authorship: Authorship(analysis=_ANALYSIS, author="anna", at=_WHEN).to_bytes(),
    Vote: Vote(analysis=_ANALYSIS, reviewer="ruth", verdict="approve", comment="read", at=_WHEN).to_bytes(),
    JobApproval: _JOB_APPROVAL.to_bytes(),
    StandingApproval: _STANDING.to_bytes(),
    ReleaseDecision: ReleaseDecision(
        node="FI",
        run_id=_RUN_ID,
        summary_digest=_DIGEST,
        decision="RELEASE",
        reason="small counts suppressed",
        checker="otto",
        at=_WHEN,
    ).to_bytes(),
    Statement: _STATEMENT.to_bytes(),
}
