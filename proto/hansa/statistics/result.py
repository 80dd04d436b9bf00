"""The result of a job: what its released summaries say together.

The coordinator makes it, and the researcher's client makes it again from the
same summaries: every byte is determined by the signed job, the summaries and
how the runs ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hansa.contract.job import JobSpec
from hansa.contract.states import JobState, RunState
from hansa.contract.summary import Summary
from hansa.statistics.frequencies import frequency_result

_FREQUENCY_ARRAYS: Final = frozenset({"people", "an", "ac"})


class CombinationError(Exception):
    """The released summaries cannot be combined; a node's figures are absurd."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """How the run of one node ended.

    ``statement`` is the digest of the release statement whose summary counts;
    empty where there is none.
    """

    node: str
    dataset: str
    state: RunState
    reason: str
    statement: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """How a job ended; ``runs`` are in the researcher's order of nodes."""

    state: JobState
    runs: tuple[RunEnd, ...]


def result_bytes(spec: JobSpec, end: JobEnd, parts: Mapping[str, Summary]) -> bytes:
    """Return the result of an ended job as JSON (docs/reference/result.md).

    Args:
        spec: the request as signed.
        end: how the job and its runs ended.
        parts: the released summaries by node; used where the job is completed.
            Whoever cannot open those of a sealed job gives none.

    Raises:
        CombinationError: the figures are such that no combination exists.
    """
    is_sealed = spec.recipient_key is not None
    combined = end.state is JobState.COMPLETED and (bool(parts) or not is_sealed)
    document = {
        "job_id": spec.job_id,
        "state": end.state.value,
        "analysis": {"name": spec.analysis.name, "version": spec.analysis.version, "digest": spec.analysis.digest},
        "parameters": dict(spec.parameters),
        "sealed": is_sealed,
        "variants": _variants(spec, parts) if combined else [],
        "nodes": [_node(run) for run in end.runs],
        "quorum": spec.quorum,
    }
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def _variants(spec: JobSpec, parts: Mapping[str, Summary]) -> list[dict[str, Any]]:
    if any(_FREQUENCY_ARRAYS - set(part.arrays) for part in parts.values()):
        raise CombinationError("a summary without the arrays of a frequency")
    named = spec.parameters.get("variants")
    try:
        return frequency_result(
            parts,
            requested=tuple(named.split(",")) if named is not None else None,
            nodes=spec.nodes,
            stratified="stratify" in spec.parameters,
        )
    except (ArithmeticError, ValueError, KeyError) as error:
        # Counts that overflow or contradict each other come from a node that
        # lies; the job fails, the coordinator goes on.
        raise CombinationError(type(error).__name__) from error


def _node(run: RunEnd) -> dict[str, str | None]:
    return {
        "node": run.node,
        "state": run.state.value,
        "reason": run.reason,
        "dataset": run.dataset,
        "statement": run.statement or None,
    }
