"""Allele frequencies from released allele counts, by country and pooled.

Pure, and of plain Python: coordinator and client compute the same result from
the same summaries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any, Final

from hansa.contract.summary import Summary, merge
from hansa.contract.variants import RS_ID, parse_variant

_ALL: Final = "all"
_SEXES: Final = ("female", "male")
_FIGURES: Final = ("people", "ac", "an")
_MOST_ALLELES: Final = 1 << 40
_Z: Final = NormalDist().inv_cdf(0.975)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the Wilson 95 % score interval of a proportion.

    Wilson, E. B. (1927). Probable inference, the law of succession, and
    statistical inference. JASA 22, 209-212; without continuity correction.
    The formula stands here because a result may need tens of thousands of
    intervals; a test holds it against ``scipy.stats.binomtest``.

    Raises:
        ValueError: no trials, or not 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError("an interval needs 0 <= successes <= trials and a trial")
    share, square = successes / trials, _Z * _Z
    width = 2 * (trials + square)
    centre = (2 * successes + square) / width
    reach = _Z * math.sqrt(4 * trials * share * (1 - share) + square) / width
    low = 0.0 if successes == 0 else centre - reach
    high = 1.0 if successes == trials else centre + reach
    return low, high


def frequency_result(
    parts: Mapping[str, Summary], *, requested: tuple[str, ...] | None, nodes: Sequence[str], stratified: bool
) -> list[dict[str, Any]]:
    """Return one row per variant, as the result's JSON has it (docs/reference/result.md).

    A country's status is ``released``, ``suppressed`` (the node answered and
    does not give the figure, for whatever reason) or ``no_answer``; figures
    that are not given are None. A pooled figure is ``partial`` where a node of
    the job is not in it.

    Args:
        parts: the released summaries by node.
        requested: the variants and rs ids asked for; None if a region was.
        nodes: every node of the job.
        stratified: add ``strata`` to each country and to the pooled figure.
    """
    strata = (_ALL, *_SEXES) if stratified else (_ALL,)
    parts = {node: _sound(part) for node, part in parts.items()}
    pooled = merge(list(parts.values())) if parts else None
    rows = []
    for label, rsid in _rows(parts, requested):
        countries = {
            node: _nest({s: _country(parts.get(node), (label, s)) for s in strata}) for node in dict.fromkeys(nodes)
        }
        whole = _nest({s: _pooled(pooled, (label, s), _giving(parts, (label, s), nodes), nodes) for s in strata})
        rows.append({"variant": label, "rsid": rsid, "countries": countries, "pooled": whole})
    return rows


def _rows(parts: Mapping[str, Summary], requested: tuple[str, ...] | None) -> Iterable[tuple[str, str | None]]:
    """Yield each row's variant and rs id, in the result's order, each variant once."""
    known = {label for part in parts.values() for label in part.axes["variant"]}
    notes = dict(sorted((item for part in parts.values() for item in part.notes.items()), reverse=True))
    if requested is None:
        yield from ((label, notes.get(label)) for label in sorted(known, key=parse_variant))
        return
    labels_of: dict[str, set[str]] = {}
    for label, rsid in (item for part in parts.values() for item in part.notes.items()):
        labels_of.setdefault(rsid, set()).add(label)
    shown: set[str] = set()
    for name in requested:
        by_rsid = RS_ID.fullmatch(name) is not None
        labels = sorted(labels_of.get(name, ()), key=parse_variant) or [name]
        for label in labels:
            if label not in shown:
                shown.add(label)
                yield label, name if by_rsid else notes.get(label)


def _sound(part: Summary) -> Summary:
    """Return ``part`` without cells that are no figure: half given, or impossible.

    What a node's own check would not let out must not spoil the others' sum.
    """
    counts = {name: part.arrays[name].cells for name in _FIGURES}
    keys = {
        key
        for key, an in counts["an"].items()
        if all(key in cells for cells in counts.values())
        and 0 <= counts["ac"][key] <= an <= _MOST_ALLELES
        and 0 < an == 2 * counts["people"][key]
    }
    arrays = {
        name: replace(part.arrays[name], cells={key: value for key, value in cells.items() if key in keys})
        for name, cells in counts.items()
    }
    return replace(part, arrays=arrays)


def _figures(ac: int, an: int, people: int) -> dict[str, Any]:
    return {"people": people, "ac": ac, "an": an, "af": ac / an, "ci95": list(wilson(ac, an))}


def _cell(summary: Summary | None, key: tuple[str, str]) -> dict[str, Any]:
    counts = {name: summary.arrays[name].cells.get(key) if summary else None for name in _FIGURES}
    found = {name: value for name, value in counts.items() if isinstance(value, int)}
    if len(found) < len(counts):
        return {"people": None, "ac": None, "an": None, "af": None, "ci95": None}
    return _figures(**found)


def _country(part: Summary | None, key: tuple[str, str]) -> dict[str, Any]:
    cell = _cell(part, key)
    if part is None:
        return {**cell, "status": "no_answer"}
    return {**cell, "status": "suppressed" if cell["an"] is None else "released"}


def _giving(parts: Mapping[str, Summary], key: tuple[str, str], nodes: Sequence[str]) -> list[str]:
    return [node for node in nodes if node in parts and key in parts[node].arrays["an"].cells]


def _pooled(
    pooled: Summary | None, key: tuple[str, str], giving: Sequence[str], nodes: Sequence[str]
) -> dict[str, Any]:
    return {**_cell(pooled, key), "partial": len(giving) < len(nodes), "countries": list(giving)}


def _nest(cells: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    strata = {stratum: cell for stratum, cell in cells.items() if stratum != _ALL}
    return {**cells[_ALL], "strata": strata} if strata else dict(cells[_ALL])
