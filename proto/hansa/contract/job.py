"""The job as its researcher signs it: the payload of the envelope.

JSON, made once at the client. Coordinator and node parse the bytes that were
signed and never write them again. Unknown keys, repeated keys and numbers that
JSON cannot carry exactly are errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from hansa.contract.digests import DIGEST
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import (
    ANALYSIS_NAME,
    ANALYSIS_VERSION,
    DATASET_ID,
    FEDERATION_NAME,
    NODE_ID,
    PERSON_NAME,
    PROJECT_NAME,
)
from hansa.contract.limits import CLOCK_TOLERANCE, JOB_BYTES, MAX_DEADLINE, MAX_NODES
from hansa.contract.raw_keys import RAW_KEY
from hansa.contract.release import ReleaseClass
from hansa.contract.strict import Strict, parse_strict, pattern, to_bytes

_UUID: Final = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# What every database and every JSON reader can hold.
_MOST_VERSION: Final = (1 << 53) - 1
# For people, in the log of a node: printable ASCII, so that no terminal obeys it.
_PURPOSE: Final = r"[\x20-\x7e]{0,500}"


class AnalysisRef(Strict):
    """Which analysis, by name, version and the digest of its bundle."""

    name: Annotated[str, pattern(ANALYSIS_NAME.pattern)]
    version: Annotated[str, pattern(ANALYSIS_VERSION.pattern)]
    digest: Annotated[str, pattern(DIGEST.pattern)]


class DatasetRef(Strict):
    """Which dataset at which node, as the snapshot the researcher saw."""

    node: Annotated[str, pattern(NODE_ID.pattern)]
    dataset: Annotated[str, pattern(DATASET_ID.pattern)]
    snapshot: Annotated[str, pattern(DIGEST.pattern)]


class JobSpec(Strict):
    """The whole request. The node set is exactly that of ``datasets``."""

    v: Literal[1] = 1
    federation: Annotated[str, pattern(FEDERATION_NAME.pattern)]
    # The version of the directory that the researcher knew; a node whose own is newer declines.
    directory_version: int = Field(ge=1, le=_MOST_VERSION, strict=True)
    job_id: Annotated[str, pattern(_UUID)]
    nonce: Annotated[str, pattern("[0-9a-f]{32}")]
    submitter: Annotated[str, pattern(PERSON_NAME.pattern)]
    project: Annotated[str, pattern(PROJECT_NAME.pattern)]
    purpose: Annotated[str, pattern(_PURPOSE)] = ""
    analysis: AnalysisRef
    parameters: Mapping[Annotated[str, StringConstraints(max_length=32)], str]
    datasets: tuple[DatasetRef, ...] = Field(min_length=1, max_length=MAX_NODES)
    quorum: int = Field(ge=1, le=MAX_NODES, strict=True)
    rounds: Literal[1] = 1
    # How many people must look before a summary leaves; the node's policy may ask for more.
    release_class: ReleaseClass = ReleaseClass.AUTO
    # Who alone may read the summaries (X25519); None where the coordinator combines them.
    recipient_key: Annotated[str, pattern(RAW_KEY)] | None = None
    # By node, the digest of the passport that entitles the submitter there.
    passports: Mapping[Annotated[str, pattern(NODE_ID.pattern)], Annotated[str, pattern(DIGEST.pattern)]] = Field(
        default_factory=dict
    )
    not_before: AwareDatetime
    not_after: AwareDatetime

    @model_validator(mode="after")
    def _one_dataset_per_node(self) -> JobSpec:
        if len({ref.node for ref in self.datasets}) != len(self.datasets):
            raise ValueError("datasets: one dataset per node")
        if not self.passports.keys() <= {ref.node for ref in self.datasets}:
            raise ValueError("passports: a passport for a node that the job does not go to")
        return self

    @property
    def nodes(self) -> tuple[str, ...]:
        """The exact node set, in the researcher's order."""
        return tuple(ref.node for ref in self.datasets)

    def dataset_at(self, node: str) -> DatasetRef:
        """Return what the job asks of ``node``.

        Raises:
            KeyError: nothing; the job is not for this node.
        """
        for ref in self.datasets:
            if ref.node == node:
                return ref
        raise KeyError(node)

    def to_bytes(self) -> bytes:
        """Return the payload. Called once, by the client that signs."""
        return to_bytes(self)


def parse_job(payload: bytes) -> JobSpec:
    """Return the job in ``payload``.

    Raises:
        HansaError: ``ENVELOPE_INVALID``, naming the first field at fault.
    """
    return parse_strict(JobSpec, payload, reason=Reason.ENVELOPE_INVALID, what="job", most_bytes=JOB_BYTES)


def check_window(spec: JobSpec, now: datetime) -> None:
    """Return if ``now`` lies within the job's validity.

    Raises:
        HansaError: ``DEADLINE_INVALID``; the deadline has passed or is too far
            away, or the job is not valid yet beyond the tolerated clock error.
    """
    if spec.not_after <= now:
        raise HansaError(Reason.DEADLINE_INVALID, "The deadline lies in the past.", field="not_after")
    if spec.not_after - now > MAX_DEADLINE or spec.not_before - now > CLOCK_TOLERANCE:
        raise HansaError(Reason.DEADLINE_INVALID, field="not_after")


def check_quorum(spec: JobSpec) -> None:
    """Return if the quorum can be met.

    Raises:
        HansaError: ``QUORUM_INVALID``.
    """
    if spec.quorum > len(spec.datasets):
        raise HansaError(
            Reason.QUORUM_INVALID,
            f"The quorum is {spec.quorum}, but the job goes to {len(spec.datasets)} nodes.",
            field="quorum",
        )
