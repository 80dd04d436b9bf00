"""The disclosure rule ``allele-counts``: which figures of a summary may leave.

A cell is one variant in one stratum (``all``, ``female``, ``male``, ``unknown``).

1. A cell *passes* if at least ``min_cohort`` people have a genotype there, at
   least ``min_carriers`` of them carry the allele, and at least as many carry
   another one. Zero counts as small.
2. The ``all`` cell of a variant is given if it passes. Exception: alleles at one
   position that all pass are given together or not at all. What they leave of
   the position's alleles is a figure too (anybody can subtract), and must be
   at least ``2 * min_carriers`` alleles, hence ``min_carriers`` people.
3. The strata of a position are given all together or not at all: if the cells
   of both sexes, and of ``unknown`` where there is anybody, pass for every
   allele given there, and the rest of each stratum is large enough as in 2.

Whether a cell is given depends on the snapshot and the rules alone, not on what
else was asked: jobs that overlap tell together no more than each tells alone.
That holds because the summary has every allele at the positions asked for, also
those that nobody asked for; they are weighed here and dropped.

What is not given is absent, whether it is small, zero, or not in the data.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, NoReturn, Self, final

from hansa.contract.errors import HansaError, Reason
from hansa.contract.summary import Key, Summary
from hansa.contract.variants import Region, Variant, parse_region, parse_variant, parse_variants

ALL: Final = "all"
SEXES: Final = ("female", "male")
UNKNOWN: Final = "unknown"
STRATA: Final = (*SEXES, UNKNOWN)
RELEASED_ARRAYS: Final = ("people", "an", "ac")
_ARRAYS: Final = (*RELEASED_ARRAYS, "carriers", "others")
_AXES: Final = ("variant", "stratum")
_LEAST_COHORT: Final = 20
_LEAST_CARRIERS: Final = 10


class Outcome(enum.StrEnum):
    """What a rule said of a summary."""

    PASS = "pass"  # noqa: S105 a word, not a secret
    SUPPRESSED = "suppressed"
    WITHHELD = "withheld"


@dataclass(frozen=True, slots=True)
class Check:
    """One rule's word, for the node's own output checker; it never leaves.

    ``count`` is the number of cells that the rule took out.
    """

    rule: str
    outcome: Outcome
    count: int


@dataclass(frozen=True, slots=True)
class CountRules:
    """How little may leave. A policy may raise the numbers, never lower them.

    Raises:
        ValueError: a number below its least.
    """

    min_cohort: int = _LEAST_COHORT
    min_carriers: int = _LEAST_CARRIERS

    def __post_init__(self) -> None:
        if self.min_cohort < _LEAST_COHORT or self.min_carriers < _LEAST_CARRIERS:
            raise ValueError(f"min_cohort is at least {_LEAST_COHORT}, min_carriers at least {_LEAST_CARRIERS}")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the job asked for: variants (normal forms or rs ids) or a region."""

    variants: tuple[str, ...] = ()
    region: Region | None = None
    stratified: bool = False

    def __post_init__(self) -> None:
        if bool(self.variants) == (self.region is not None):
            raise ValueError("a job asks for variants or for a region")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Self:
        """Return what checked parameters (``manifest.check_parameters``) ask for.

        Raises:
            ValueError: neither or both of ``variants`` and ``region``.
        """
        variants = parse_variants(parameters["variants"]) if "variants" in parameters else ()
        region = parse_region(parameters["region"]) if "region" in parameters else None
        return cls(variants, region, stratified="stratify" in parameters)


@final
@dataclass(frozen=True, slots=True)
class Cleared:
    """A summary that passed. Only ``clear_allele_counts`` makes one."""

    summary: Summary
    checks: tuple[Check, ...]


@final
@dataclass(frozen=True, slots=True)
class Withheld:
    """Nothing of the summary may leave."""

    checks: tuple[Check, ...]


class _Cell(NamedTuple):  # in the order of _ARRAYS
    people: int
    an: int
    ac: int
    carriers: int
    others: int


_Row = Mapping[str, _Cell]  # by stratum


@dataclass(frozen=True, slots=True)
class _Site:
    """Every allele of the summary at one position."""

    rows: Mapping[Variant, _Row]
    strata: tuple[str, ...]  # those that must pass together; empty if not asked for

    def passing(self, rules: CountRules) -> tuple[Variant, ...]:
        return tuple(variant for variant, row in self.rows.items() if _passes(row[ALL], rules))

    def rest_is_large(self, variants: Sequence[Variant], stratum: str, rules: CountRules) -> bool:
        # One allele's rest is the people who carry another one: its own cell has judged it.
        if len(variants) == 1:
            return True
        cells = [self.rows[variant][stratum] for variant in variants]
        return min(cell.an for cell in cells) - sum(cell.ac for cell in cells) >= 2 * rules.min_carriers

    def strata_pass(self, variants: Sequence[Variant], rules: CountRules) -> bool:
        return bool(self.strata) and all(
            self.rest_is_large(variants, stratum, rules)
            and all(_passes(self.rows[variant][stratum], rules) for variant in variants)
            for stratum in self.strata
        )


def clear_allele_counts(
    collected: Summary, *, cohort: Mapping[str, int], asked: Asked, rules: CountRules
) -> Cleared | Withheld:
    """Return what may leave of ``collected``.

    Args:
        collected: what the run wrote, parsed against its manifest, with the
            arrays that never leave.
        cohort: people in the snapshot by ``female``, ``male``, ``unknown``; from
            the node's own records, never from the run. Absent means nobody.
        asked: what the job asked for.
        rules: the node's rules.

    Raises:
        HansaError: ``SUMMARY_CORRUPT``; the summary contradicts itself, the
            cohort, or what was asked. The text quotes no data.
    """
    sizes = _sizes(cohort)
    if sizes[ALL] < rules.min_cohort:
        return Withheld((Check("min-cohort", Outcome.WITHHELD, len(collected.axes.get("variant", ()))),))
    rows = _rows(collected, sizes, asked)
    strata = tuple(s for s in STRATA if s in SEXES or sizes[s]) if asked.stratified else ()
    given: dict[Variant, tuple[str, ...]] = {}
    lone = together = 0
    for site in _sites(rows, strata):
        passing = site.passing(rules)
        lone += len(site.rows) - len(passing)
        if passing and not site.rest_is_large(passing, ALL, rules):
            together += len(passing)
            continue
        labels = (ALL, *strata) if passing and site.strata_pass(passing, rules) else (ALL,)
        given.update(dict.fromkeys(passing, labels))
    wanted = {variant: given[variant] for variant in _asked_for(rows, collected.notes, asked) if variant in given}
    split = sum(len(labels) == 1 for labels in given.values()) if strata else 0
    checks = (
        Check("min-cohort", Outcome.PASS, 0),
        _check("min-carriers", lone),
        _check("alleles-together", together),
        _check("strata-together", split * len(strata)),
    )
    return Cleared(_restrict(collected, wanted, stratified=asked.stratified), checks)


def _check(rule: str, count: int) -> Check:
    return Check(rule, Outcome.SUPPRESSED if count else Outcome.PASS, count)


def _passes(cell: _Cell, rules: CountRules) -> bool:
    # People with a genotype, not people of the cohort: ten called people who
    # all carry both alleles would otherwise be known one by one.
    return cell.people >= rules.min_cohort and min(cell.carriers, cell.others) >= rules.min_carriers


def _sizes(cohort: Mapping[str, int]) -> dict[str, int]:
    if not set(cohort) <= set(STRATA) or any(size < 0 for size in cohort.values()):
        raise ValueError(f"a cohort counts people by {STRATA}")
    sizes = {stratum: cohort.get(stratum, 0) for stratum in STRATA}
    return {ALL: sum(sizes.values()), **sizes}


def _corrupt(where: str) -> NoReturn:
    raise HansaError(Reason.SUMMARY_CORRUPT, f"The summary is not plausible at {where}.", field=where)


def _rows(collected: Summary, sizes: Mapping[str, int], asked: Asked) -> dict[Variant, _Row]:
    """Return the cells by variant and stratum, each found plausible."""
    if set(collected.arrays) != set(_ARRAYS) or any(array.axes != _AXES for array in collected.arrays.values()):
        _corrupt("arrays")
    strata = collected.axes["stratum"]
    # `unknown` may be left out where nobody's sex is unknown.
    least = {ALL, *(s for s in STRATA if asked.stratified and (s in SEXES or sizes[s]))}
    most = {ALL, *STRATA} if asked.stratified else {ALL}
    if not least <= set(strata) <= most:
        _corrupt("axes.stratum")
    columns = [collected.arrays[name].cells for name in _ARRAYS]
    rows: dict[Variant, _Row] = {
        parse_variant(label): {stratum: _cell(columns, (label, stratum), sizes[stratum]) for stratum in strata}
        for label in collected.axes["variant"]
    }
    _check_asked(rows, collected.notes, asked)
    if asked.stratified and any(not _adds_up(row) for row in rows.values()):
        _corrupt("axes.stratum")
    return rows


def _cell(columns: Sequence[Mapping[Key, int | float]], key: Key, size: int) -> _Cell:
    counts = [column.get(key) for column in columns]
    if not all(type(count) is int and count >= 0 for count in counts):
        _corrupt("arrays")
    cell = _Cell(*counts)  # type: ignore[arg-type]  # each was found to be an int
    if cell.people > size:
        _corrupt("arrays.people")
    if cell.an != 2 * cell.people:
        _corrupt("arrays.an")
    if max(cell.carriers, cell.others) > cell.people or cell.carriers + cell.others < cell.people:
        _corrupt("arrays.carriers")
    # Each carrier has one copy of the allele, and a second one unless they
    # carry another allele too.
    if cell.ac != cell.carriers + (cell.people - cell.others):
        _corrupt("arrays.ac")
    return cell


def _adds_up(row: _Row) -> bool:
    parts = [cell for stratum, cell in row.items() if stratum != ALL]
    whole = row[ALL]
    return (
        sum(part.people for part in parts) == whole.people
        and sum(part.carriers for part in parts) == whole.carriers
        and sum(part.others for part in parts) == whole.others
    )


def _check_asked(rows: Iterable[Variant], notes: Mapping[str, str], asked: Asked) -> None:
    """Refuse a label that is neither asked for nor at a position asked for."""
    places = {_place(variant) for variant in _asked_for(rows, notes, asked)}
    places |= {_place(parse_variant(name)) for name in asked.variants if ":" in name}
    if any(_place(variant) not in places for variant in rows):
        _corrupt("axes.variant")


def _asked_for(rows: Iterable[Variant], notes: Mapping[str, str], asked: Asked) -> list[Variant]:
    """Return what was asked for by name or region, in genome order."""
    if asked.region is not None:
        found = [variant for variant in rows if asked.region.holds(variant)]
    else:
        names = frozenset(asked.variants)
        found = [variant for variant in rows if not names.isdisjoint((label := str(variant), notes.get(label, label)))]
    return sorted(found, key=_genome_order)


def _genome_order(variant: Variant) -> tuple[int, int, str, str]:
    return variant.chrom, variant.pos, variant.ref, variant.alt


def _place(variant: Variant) -> tuple[int, int]:
    return variant.chrom, variant.pos


def _sites(rows: Mapping[Variant, _Row], strata: tuple[str, ...]) -> Iterable[_Site]:
    by_place: dict[tuple[int, int], dict[Variant, _Row]] = {}
    for variant, row in rows.items():
        by_place.setdefault(_place(variant), {})[variant] = row
    return (_Site(site, strata) for site in by_place.values())


def _restrict(collected: Summary, given: Mapping[Variant, tuple[str, ...]], *, stratified: bool) -> Summary:
    """Return the summary of the cells ``given``, in genome order.

    The order and the labels of the strata are ours, not the run's: neither
    tells what was taken out.
    """
    keys = [(str(variant), stratum) for variant, strata in given.items() for stratum in strata]
    arrays = {
        name: replace(collected.arrays[name], cells={key: collected.arrays[name].cells[key] for key in keys})
        for name in RELEASED_ARRAYS
    }
    labels = tuple(str(variant) for variant in given)
    axes = {"variant": labels, "stratum": (ALL, *STRATA) if stratified else (ALL,)}
    return Summary(axes, arrays, {label: collected.notes[label] for label in labels if label in collected.notes})
