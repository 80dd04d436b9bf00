"""The job as its researcher signs it: the payload of the envelope.

JSON, made once at the client. Coordinator and node parse the bytes that were
signed and never write them again. Unknown keys, repeated keys and numbers that
JSON cannot carry exactly are errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from hansa.contract.digests import DIGEST
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import ANALYSIS_NAME, ANALYSIS_VERSION, DATASET_ID, NODE_ID, PERSON_NAME
from hansa.contract.limits import CLOCK_TOLERANCE, JOB_BYTES, MAX_DEADLINE, MAX_NODES

_UUID: Final = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
_MAX_DEPTH: Final = 8
_BRACKET: Final = re.compile(r"[\[\]{}]")


def _pattern(text: str) -> StringConstraints:
    return StringConstraints(pattern=f"^(?:{text})$")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AnalysisRef(_Strict):
    """Which analysis, by name, version and the digest of its bundle."""

    name: Annotated[str, _pattern(ANALYSIS_NAME.pattern)]
    version: Annotated[str, _pattern(ANALYSIS_VERSION.pattern)]
    digest: Annotated[str, _pattern(DIGEST.pattern)]


class DatasetRef(_Strict):
    """Which dataset at which node, as the snapshot the researcher saw."""

    node: Annotated[str, _pattern(NODE_ID.pattern)]
    dataset: Annotated[str, _pattern(DATASET_ID.pattern)]
    snapshot: Annotated[str, _pattern(DIGEST.pattern)]


class JobSpec(_Strict):
    """The whole request. The node set is exactly that of ``datasets``."""

    v: Literal[1] = 1
    job_id: Annotated[str, _pattern(_UUID)]
    nonce: Annotated[str, _pattern("[0-9a-f]{32}")]
    submitter: Annotated[str, _pattern(PERSON_NAME.pattern)]
    analysis: AnalysisRef
    parameters: Mapping[Annotated[str, StringConstraints(max_length=32)], str]
    datasets: tuple[DatasetRef, ...] = Field(min_length=1, max_length=MAX_NODES)
    quorum: int = Field(ge=1, strict=True)
    not_before: AwareDatetime
    not_after: AwareDatetime

    @model_validator(mode="after")
    def _one_dataset_per_node(self) -> JobSpec:
        if len({ref.node for ref in self.datasets}) != len(self.datasets):
            raise ValueError("datasets: one dataset per node")
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
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":"), sort_keys=True).encode()


def parse_job(payload: bytes) -> JobSpec:
    """Return the job in ``payload``.

    Raises:
        HansaError: ``ENVELOPE_INVALID``, naming the first field at fault.
    """
    if len(payload) > JOB_BYTES:
        raise HansaError(Reason.ENVELOPE_INVALID, f"The job is over {JOB_BYTES} bytes.", field="payload")
    try:
        return JobSpec.model_validate(strict_json(payload))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # A key that nobody declared may be any text; it is shown as ASCII.
        field = ascii(".".join(str(part) for part in first["loc"]))[1:-1][:100] or "datasets"
        raise HansaError(Reason.ENVELOPE_INVALID, f"{field}: {first['msg']}", field=field) from error
    except (ValueError, RecursionError) as error:
        raise HansaError(Reason.ENVELOPE_INVALID, "The job is not strict JSON.", field="payload") from error


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


def strict_json(data: bytes) -> Any:
    """Return the JSON value in ``data``.

    Raises:
        ValueError: not UTF-8 JSON, a key stands twice, a number is not finite,
            a string is no text (half of a surrogate pair), or the nesting is
            deeper than 8.
    """
    text = data.decode("utf-8")
    if _depth(text) > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    if "\\u" in text:
        # What UTF-8 cannot write, no database or message could hold either.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _depth(text: str) -> int:
    """Return an upper bound of the nesting (brackets in strings count too)."""
    depth = deepest = 0
    for match in _BRACKET.finditer(text):
        depth += 1 if match[0] in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
