"""The attacker: knows the rule, the cohort by sex and all that was given; asks for the rest.

A suppressed figure is safe if another genotype table, in which it is different,
gives byte for byte the same answer.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hansa.contract.summary import Array, Summary, summary_bytes
from hansa.contract.variants import Region
from node_agent.disclosure.allele_counts import Asked, Cleared, CountRules, clear_allele_counts
from tests.support import allele_tables as tables
from tests.support.allele_tables import ALTS, POSITION, REF, Person, World

pytestmark = pytest.mark.slow

RULES = CountRules()
STRATA = ("all", "female", "male", "unknown")
Given = dict[tuple[str, ...], tuple[int | float, ...]]


def given_of(summary: Summary) -> Given:
    return {
        key: tuple(summary.arrays[name].cells[key] for name in ("people", "an", "ac"))
        for key in summary.arrays["people"].cells
    }


def ask(world: World, alts: tuple[str, ...] = ALTS, *, stratified: bool = True) -> Summary:
    outcome = clear_allele_counts(
        tables.collected({POSITION: world}, ALTS, stratified=stratified),
        cohort=tables.cohort(world),
        asked=Asked(tuple(tables.label(alt) for alt in alts), stratified=stratified),
        rules=RULES,
    )
    assume(isinstance(outcome, Cleared))
    assert isinstance(outcome, Cleared)
    return outcome.summary


# --- one allele: every table there is -----------------------------------------------------


def triples(people: int) -> list[tuple[int, int, int]]:
    """All ways to have none, one and two copies among ``people``."""
    return [(people - one - two, one, two) for one in range(people + 1) for two in range(people + 1 - one)]


def every_table(sizes: tuple[int, int, int]) -> Summary:
    """One summary in which each table that the cohort allows is a variant of its own."""
    cells: dict[str, dict[tuple[str, ...], int | float]] = {name: {} for name in tables.SPEC.arrays}
    labels = []
    for number, split in enumerate(itertools.product(*(triples(size) for size in sizes)), start=1):
        labels.append(f"1:{number}:A:C")
        whole = tuple(sum(column) for column in zip(*split, strict=True))
        for stratum, (none, one, two) in zip(STRATA, (whole, *split), strict=True):
            key, people = (labels[-1], stratum), none + one + two
            figures = {"people": people, "an": 2 * people, "ac": one + 2 * two}
            for name, figure in {**figures, "carriers": one + two, "others": none + one}.items():
                cells[name][key] = figure
    arrays = {name: Array("int64", ("variant", "stratum"), "sum", found) for name, found in cells.items()}
    return Summary({"variant": tuple(labels), "stratum": STRATA}, arrays)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((20, 20, 0), marks=pytest.mark.slow),
        pytest.param((24, 20, 0), marks=pytest.mark.slow),
        pytest.param((20, 5, 0)),
        pytest.param((30, 1, 0)),
        pytest.param((5, 3, 13)),
    ],
    ids=lambda sizes: "-".join(map(str, sizes)),
)
def test_no_suppressed_figure_of_one_allele_can_be_computed(sizes: tuple[int, int, int]) -> None:
    collected = every_table(sizes)
    cohort = dict(zip(STRATA[1:], sizes, strict=True))
    outcome = clear_allele_counts(
        collected, cohort=cohort, asked=Asked(region=Region(1, 1, 10**9), stratified=True), rules=RULES
    )
    assert isinstance(outcome, Cleared)
    given_cells = given_of(outcome.summary)
    # What the attacker sees of a table -> what each figure may be that is not seen.
    possible: dict[tuple[object, ...], dict[str, set[float]]] = defaultdict(lambda: defaultdict(set))
    for label in collected.axes["variant"]:
        seen = tuple(given_cells.get((label, stratum)) for stratum in STRATA)
        for stratum, cell in zip(STRATA, seen, strict=True):
            if cell is None:
                possible[seen][stratum].add(collected.arrays["ac"].cells[label, stratum])
    for figures in possible.values():
        for stratum, values in figures.items():
            if stratum == "all":
                assert 0 in values
                assert len(values) > 9
            elif cohort[stratum]:
                # Two, where every carrier is known to have one copy and a sex is one person.
                assert len(values) >= min(3, 1 + min(size for size in sizes if size))


# --- several alleles at one position: search for a witness -----------------------------------

few = st.sampled_from([0, 0, 0, 1, 2, 8, 9, 10, 11, 20])
pairs = st.sampled_from(list(itertools.combinations_with_replacement((REF, *ALTS), 2)))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    kinds = draw(st.lists(pairs, min_size=2, max_size=5, unique=True))
    people = []
    for sex in draw(st.sampled_from([("female",), ("female", "male"), ("female", "male"), STRATA[1:]])):
        for kind in kinds:
            people += [Person(sex, kind)] * draw(few)
        people += [Person(sex, None)] * draw(st.sampled_from([0, 0, 1, 9]))
    return tuple(people)


def exchanged(world: World, place: tuple[int, int], allele: str) -> World:
    person = world[place[0]]
    assert person.genotype is not None
    alleles = list(person.genotype)
    alleles[place[1]] = allele
    return (*world[: place[0]], Person(person.sex, (alleles[0], alleles[1])), *world[place[0] + 1 :])


def places(world: World, allele: str, stratum: str) -> list[tuple[int, int]]:
    return [
        (number, which)
        for number, person in enumerate(world)
        if stratum in ("all", person.sex) and person.genotype is not None
        for which in (0, 1)
        if person.genotype[which] == allele
    ]


def recoloured(world: World, alt: str, stratum: str) -> Iterator[World]:
    """Worlds in which copies of ``alt`` are another allele, or the other way round."""
    for other in (REF, *(allele for allele in ALTS if allele != alt)):
        changed = world
        for number, place in enumerate(places(world, alt, stratum)):
            changed = exchanged(changed, place, other)
            if number == 0:
                yield changed
        yield changed
        changed = world
        for place in places(world, other, stratum)[::2][:9]:
            changed = exchanged(changed, place, alt)
            yield changed


def dealt_anew(world: World, alt: str, stratum: str) -> Iterator[World]:
    """Worlds in which people of two strata have exchanged copies of ``alt``."""
    for other in (REF, *(allele for allele in ALTS if allele != alt)):
        for away in (sex for sex in STRATA[1:] if sex != stratum):
            for source, target in ((stratum, away), (away, stratum)):
                changed = world
                routes = zip(places(world, alt, source), places(world, other, target), strict=False)
                for giving, taking in itertools.islice(routes, 12):
                    changed = exchanged(exchanged(changed, giving, other), taking, alt)
                    yield changed


def changed_places(world: World, stratum: str) -> Iterator[World]:
    """Worlds in which a person of the stratum and one of another have exchanged genotypes."""
    first = {person: number for number, person in enumerate(world)}
    inside = [person for person in first if person.sex == stratum]
    outside = [person for person in first if person.sex != stratum]
    for one, other in itertools.product(inside, outside):
        people = list(world)
        people[first[one]] = Person(one.sex, other.genotype)
        people[first[other]] = Person(other.sex, one.genotype)
        yield tuple(people)


def copies(world: World, alt: str, stratum: str) -> int:
    return len(places(world, alt, stratum))


def possible_copies(world: World, alt: str, stratum: str, *, enough: int) -> set[int]:
    """Return how many copies there may be, for all that the answer says."""
    answer = summary_bytes(ask(world))
    found = {copies(world, alt, stratum)}
    others = itertools.chain(
        recoloured(world, alt, stratum),
        changed_places(world, stratum),
        dealt_anew(world, alt, stratum),
        *(recoloured(other, alt, stratum) for other in changed_places(world, stratum)),
    )
    for other in others:
        number = copies(other, alt, stratum)
        if number not in found and summary_bytes(ask(other)) == answer:
            found.add(number)
            if len(found) >= enough and 0 in found:
                break
    return found


@pytest.mark.slow
@given(worlds())
def test_no_suppressed_figure_of_several_alleles_can_be_computed(world: World) -> None:
    answer = given_of(ask(world))
    called = {stratum: tables.counts([p for p in world if p.sex == stratum], REF)["people"] for stratum in STRATA[1:]}
    for alt, stratum in itertools.product(ALTS, STRATA):
        if (tables.label(alt), stratum) in answer:
            continue
        if stratum == "all":
            found = possible_copies(world, alt, stratum, enough=3)
            assert 0 in found, f"somebody carries {alt}"
            assert len(found) >= 3
        elif called[stratum] and sum(map(bool, called.values())) > 1:
            assert len(possible_copies(world, alt, stratum, enough=2)) >= 2


@given(worlds(), st.lists(st.sampled_from(ALTS), min_size=1, unique=True), st.booleans())
def test_overlapping_jobs_tell_together_no_more_than_one(world: World, alts: list[str], stratified: bool) -> None:
    whole = given_of(ask(world))
    part = given_of(ask(world, tuple(alts), stratified=stratified))
    labels = {tables.label(alt) for alt in alts}
    strata = STRATA if stratified else ("all",)
    assert part == {key: cell for key, cell in whole.items() if key[0] in labels and key[1] in strata}


@given(worlds())
def test_whatever_is_given_is_true_and_of_many(world: World) -> None:
    for (label, stratum), cell in given_of(ask(world)).items():
        people = [person for person in world if stratum in ("all", person.sex)]
        truth = tables.counts(people, label[-1])
        assert cell == (truth["people"], truth["an"], truth["ac"])
        assert truth["people"] >= 20
        assert min(truth["carriers"], truth["others"]) >= 10


@given(worlds())
def test_what_the_given_alleles_leave_over_is_of_many_too(world: World) -> None:
    answer = given_of(ask(world))
    for stratum in STRATA:
        cells = {label[-1]: cell for (label, where), cell in answer.items() if where == stratum}
        if cells:
            people = [person for person in world if stratum in ("all", person.sex) and person.genotype is not None]
            rest = sum(any(allele not in cells for allele in person.genotype or ()) for person in people)
            assert rest >= 10
