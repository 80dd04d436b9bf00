"""A data holder's yes to a job at their own node: for one job, or standing.

A DSSE envelope signed with the data holder's key. The coordinator may relay
that somebody asks; it cannot make one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field, TypeAdapter

from hansa.contract.digests import DIGEST
from hansa.contract.directory import NodeName, PersonName
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import DATASET_ID, FEDERATION_NAME, PROJECT_NAME
from hansa.contract.job import AnalysisRef, JobSpec
from hansa.contract.limits import MAX_VARIANTS
from hansa.contract.strict import Strict, pattern, strict_json, to_bytes

_APPROVAL_BYTES: Final = 64 << 10
_ID: Final = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_GENOME: Final = 4_000_000_000


class JobApproval(Strict):
    """Yes to exactly the job whose signed payload has this digest."""

    v: Literal[1] = 1
    kind: Literal["job"] = "job"
    approval_id: Annotated[str, pattern(_ID)]
    federation: Annotated[str, pattern(FEDERATION_NAME.pattern)]
    node: NodeName
    job_id: Annotated[str, pattern(_ID)]
    job_digest: Annotated[str, pattern(DIGEST.pattern)]
    approver: PersonName
    at: AwareDatetime

    def to_bytes(self) -> bytes:
        """Return the payload. Called once, by the data holder."""
        return to_bytes(self)


class ApprovalLimits(Strict):
    """How large a question a standing approval covers."""

    max_variants: int = Field(default=1000, ge=1, le=MAX_VARIANTS, strict=True)
    max_region_bases: int = Field(default=1_000_000, ge=1, le=_GENOME, strict=True)


class StandingApproval(Strict):
    """Yes to every job of a project with one analysis, on some datasets, for a time, within limits."""

    v: Literal[1] = 1
    kind: Literal["standing"] = "standing"
    approval_id: Annotated[str, pattern(_ID)]
    federation: Annotated[str, pattern(FEDERATION_NAME.pattern)]
    node: NodeName
    project: Annotated[str, pattern(PROJECT_NAME.pattern)]
    analysis: AnalysisRef
    datasets: tuple[Annotated[str, pattern(DATASET_ID.pattern)], ...] = Field(min_length=1)
    limits: ApprovalLimits = ApprovalLimits()
    approver: PersonName
    not_before: AwareDatetime
    not_after: AwareDatetime

    def to_bytes(self) -> bytes:
        """Return the payload. Called once, by the data holder."""
        return to_bytes(self)

    def covers(self, spec: JobSpec, now: datetime) -> bool:
        """Say whether the approval speaks of this job at this time; ``limits`` are the caller's to compare.

        Nobody approves their own job.
        """
        here = [ref.dataset for ref in spec.datasets if ref.node == self.node]
        return (
            self.not_before <= now < self.not_after
            and spec.federation == self.federation
            and spec.project == self.project
            and spec.analysis == self.analysis
            and spec.submitter != self.approver
            and bool(here)
            and set(here) <= set(self.datasets)
        )


Approval = JobApproval | StandingApproval
_ADAPTER: Final[TypeAdapter[Approval]] = TypeAdapter(Annotated[Approval, Field(discriminator="kind")])


def parse_approval(payload: bytes) -> Approval:
    """Return the approval in ``payload``.

    Raises:
        HansaError: ``APPROVAL_INVALID``.
    """
    if len(payload) > _APPROVAL_BYTES:
        raise HansaError(Reason.APPROVAL_INVALID, f"The approval is over {_APPROVAL_BYTES} bytes.", field="payload")
    try:
        return _ADAPTER.validate_python(strict_json(payload))
    except (ValueError, RecursionError) as error:
        # pydantic's ValidationError is a ValueError.
        raise HansaError(Reason.APPROVAL_INVALID, "The payload is not an approval.", field="payload") from error
