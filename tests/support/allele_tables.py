"""Genotype tables for tests of disclosure: people, their genotypes, their summary.

Counted here in the plainest way, so that it can stand against
what an analysis or a rule computes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hansa.contract.manifest import SummarySpec
from hansa.contract.summary import Array, Summary

POSITION = "2:136608646"
REF = "A"
ALTS = ("C", "G", "T")

# One person: sex, and the two alleles at the position; None where not called.
Genotype = tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Person:
    sex: str
    genotype: Genotype


World = tuple[Person, ...]

SPEC = SummarySpec.model_validate_json(
    json.dumps(
        {
            "axes": {
                "variant": {"labels": "variant"},
                "stratum": {"labels": "choice", "choices": ["all", "female", "male", "unknown"]},
            },
            "arrays": {
                name: {"dtype": "int64", "axes": ["variant", "stratum"], "merge": "sum", "released": released}
                for name, released in (
                    ("people", True),
                    ("an", True),
                    ("ac", True),
                    ("carriers", False),
                    ("others", False),
                )
            },
        }
    )
)


def label(alt: str, position: str = POSITION) -> str:
    return f"{position}:{REF}:{alt}"


def cohort(world: World) -> dict[str, int]:
    return {sex: sum(person.sex == sex for person in world) for sex in ("female", "male", "unknown")}


def counts(world: Iterable[Person], alt: str) -> dict[str, int]:
    return _counts(Counter(world), alt)


def _counts(people: Mapping[Person, int], alt: str) -> dict[str, int]:
    called = [(person.genotype, number) for person, number in people.items() if person.genotype is not None]
    total = sum(number for _, number in called)
    return {
        "people": total,
        "an": 2 * total,
        "ac": sum(number * genotype.count(alt) for genotype, number in called),
        "carriers": sum(number for genotype, number in called if alt in genotype),
        "others": sum(number for genotype, number in called if any(allele != alt for allele in genotype)),
    }


def collected(worlds: Mapping[str, World], alts: Sequence[str] = ALTS, *, stratified: bool = True) -> Summary:
    """Return the summary that a faithful run writes, for one world per position."""
    strata = ("all", "female", "male", "unknown") if stratified else ("all",)
    labels = tuple(label(alt, position) for position in worlds for alt in alts)
    cells: dict[str, dict[tuple[str, ...], int | float]] = {name: {} for name in SPEC.arrays}
    for position, world in worlds.items():
        kinds = Counter(world)
        for stratum in strata:
            people = {person: number for person, number in kinds.items() if stratum in ("all", person.sex)}
            for alt in alts:
                for name, count in _counts(people, alt).items():
                    cells[name][label(alt, position), stratum] = count
    arrays = {name: Array("int64", ("variant", "stratum"), "sum", found) for name, found in cells.items()}
    return Summary({"variant": labels, "stratum": strata}, arrays, {})
