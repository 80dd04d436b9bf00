"""The result of a job: what its released summaries say together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from coordinator.domain.records import JobRecord, RunRecord
from hansa.contract.job import JobSpec
from hansa.contract.states import JobState
from hansa.contract.summary import Summary
from hansa.statistics.frequencies import frequency_result

_FREQUENCY_ARRAYS: Final = frozenset({"people", "an", "ac"})


class CombinationError(Exception):
    """The released summaries cannot be combined; a node's figures are absurd."""


def result_bytes(job: JobRecord, spec: JobSpec, parts: Mapping[str, Summary]) -> bytes:
    """Return the result of an ended job as JSON, made once.

    Args:
        job: the job in its terminal state.
        spec: the request as signed.
        parts: the released summaries by node; used where the job is completed.

    Raises:
        CombinationError: the figures are such that no combination exists.
    """
    variants = _variants(spec, parts) if job.state is JobState.COMPLETED else []
    document = {
        "job_id": job.job_id,
        "state": job.state.value,
        "analysis": {"name": job.analysis_name, "version": job.analysis_version, "digest": job.analysis_digest},
        "parameters": dict(spec.parameters),
        "variants": variants,
        "nodes": [_node(run) for run in job.runs],
        "quorum": job.quorum,
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


def _node(run: RunRecord) -> dict[str, str]:
    return {"node": run.node, "state": run.state.value, "reason": run.reason, "dataset": run.dataset}
