"""Results of allele-frequency jobs, made as the coordinator makes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hansa.contract.summary import Array, Summary
from hansa.statistics.frequencies import frequency_result

RS = "rs12913832"
VARIANT = "15:28365618:A:G"
JOB_ID = "019aa0de-0000-7000-8000-000000000001"
STRATA = ("all", "female", "male")

# (people, ac) by variant and stratum; an absent cell is suppressed.
Counts = Mapping[tuple[str, str], tuple[int, int]]


def part(counts: Counts, *, rsids: Mapping[str, str] | None = None) -> Summary:
    """Return the released summary of one node."""
    labels = tuple(dict.fromkeys(variant for variant, _ in counts))
    cells: dict[str, dict[tuple[str, ...], int | float]] = {
        "people": {key: people for key, (people, _) in counts.items()},
        "an": {key: 2 * people for key, (people, _) in counts.items()},
        "ac": {key: ac for key, (_, ac) in counts.items()},
    }
    arrays = {name: Array("int64", ("variant", "stratum"), "sum", values) for name, values in cells.items()}
    return Summary({"variant": labels, "stratum": STRATA}, arrays, dict(rsids or {}))


def result_document(
    parts: Mapping[str, Summary],
    *,
    nodes: Sequence[str],
    requested: tuple[str, ...] | None = (RS,),
    stratified: bool = False,
    state: str = "COMPLETED",
) -> dict[str, Any]:
    """Return a result as the coordinator's JSON has it."""
    variants = frequency_result(parts, requested=requested, nodes=nodes, stratified=stratified)
    ends = [
        {
            "node": node,
            "state": "RELEASED" if node in parts else "DECLINED",
            "reason": "" if node in parts else "NODE_BUSY",
        }
        for node in nodes
    ]
    return {"job_id": JOB_ID, "state": state, "variants": variants, "nodes": ends}


def encoded(document: Mapping[str, Any]) -> bytes:
    """Return ``document`` as the bytes of a result."""
    return json.dumps(document).encode()


def two_countries_and_one_suppressed(**changes: Any) -> dict[str, Any]:
    """Return a result in which GB and FI release a variant that ES suppresses."""
    sexes = {"all": (91, 113), "female": (45, 57), "male": (46, 56)}
    parts = {
        "GB": part({(VARIANT, stratum): counts for stratum, counts in sexes.items()}, rsids={VARIANT: RS}),
        "FI": part({(VARIANT, "all"): (99, 181)}, rsids={VARIANT: RS}),
        "ES": part({}),
    }
    return result_document(parts, nodes=("GB", "FI", "ES"), **changes)
