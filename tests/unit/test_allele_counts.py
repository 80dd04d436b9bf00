"""What the rule `allele-counts` lets out, case by case."""

from dataclasses import replace

import pytest

from hansa.contract.errors import HansaError, Reason
from hansa.contract.summary import Summary, parse_summary, summary_bytes
from hansa.contract.variants import Region
from node_agent.disclosure.allele_counts import (
    Asked,
    Check,
    Cleared,
    CountRules,
    Outcome,
    Withheld,
    clear_allele_counts,
)
from tests.support import allele_tables as tables
from tests.support.allele_tables import POSITION, Person, World

RULES = CountRules()
C = tables.label("C")


def group(sex: str, *, none: int = 0, one: int = 0, two: int = 0, missing: int = 0, alt: str = "C") -> World:
    """People of one sex with no, one and two copies of the allele, and without a genotype."""
    genotypes = [("A", "A")] * none + [("A", alt)] * one + [(alt, alt)] * two + [None] * missing
    return tuple(Person(sex, genotype) for genotype in genotypes)


def clear(
    world: World, *, alts: tuple[str, ...] = ("C",), asked: Asked | None = None, rules: CountRules = RULES
) -> Cleared | Withheld:
    asked = asked or Asked(tuple(tables.label(alt) for alt in alts), stratified=True)
    summary = tables.collected({POSITION: world}, alts, stratified=asked.stratified)
    return clear_allele_counts(summary, cohort=tables.cohort(world), asked=asked, rules=rules)


def released(outcome: Cleared | Withheld) -> dict[tuple[str, ...], tuple[int | float, ...]]:
    assert isinstance(outcome, Cleared)
    arrays = outcome.summary.arrays
    return {
        key: (people, arrays["an"].cells[key], arrays["ac"].cells[key])
        for key, people in arrays["people"].cells.items()
    }


def test_a_cell_with_ten_carriers_and_ten_others_is_given_exactly() -> None:
    world = group("female", none=10, one=5, two=5) + group("male", none=10, one=10)
    assert released(clear(world)) == {
        (C, "all"): (40, 80, 25),
        (C, "female"): (20, 40, 15),
        (C, "male"): (20, 40, 10),
    }


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(group("female", none=50, one=9), id="nine carriers"),
        pytest.param(group("female", none=50), id="nobody carries it"),
        pytest.param(group("female", two=50, one=9), id="nine people carry another allele"),
        pytest.param(group("female", two=50), id="everybody has it twice"),
        pytest.param(group("female", one=12, missing=30), id="twelve people have a genotype"),
    ],
)
def test_small_zero_and_full_counts_look_the_same(world: World) -> None:
    outcome = clear(world)
    assert isinstance(outcome, Cleared)
    assert outcome.summary.axes == {"variant": (), "stratum": ("all", "female", "male", "unknown")}
    assert summary_bytes(outcome.summary) == summary_bytes(unknown_variant().summary)


def unknown_variant() -> Cleared:
    world = group("female", none=30)
    outcome = clear_allele_counts(
        tables.collected({POSITION: world}, ()),
        cohort=tables.cohort(world),
        asked=Asked((C,), stratified=True),
        rules=RULES,
    )
    assert isinstance(outcome, Cleared)
    return outcome


def test_strata_are_given_together_or_not_at_all() -> None:
    world = group("female", none=30, one=30) + group("male", none=30, one=9)
    assert released(clear(world)) == {(C, "all"): (99, 198, 39)}


def test_one_person_of_unknown_sex_closes_the_strata() -> None:
    both = group("female", none=30, one=30) + group("male", none=30, one=30)
    assert len(released(clear(both))) == 3
    assert set(released(clear(both + group("unknown", one=1)))) == {(C, "all")}


def test_people_of_unknown_sex_are_a_stratum_once_they_are_many() -> None:
    world = tuple(person for sex in ("female", "male", "unknown") for person in group(sex, none=15, one=15))
    assert {stratum for _, stratum in released(clear(world))} == {"all", "female", "male", "unknown"}


def test_a_cohort_of_one_sex_gives_no_strata() -> None:
    # Else the missing men would be a count of zero that is told.
    assert set(released(clear(group("female", none=30, one=30)))) == {(C, "all")}


def test_a_cohort_of_nineteen_is_withheld_whole() -> None:
    outcome = clear(group("female", none=9, one=10))
    assert outcome == Withheld((Check("min-cohort", Outcome.WITHHELD, 1),))


def test_two_alleles_that_leave_few_others_at_their_position_are_not_given() -> None:
    # 40 C and 40 T of 86 alleles: the six left would be the people with A.
    world = tuple(Person("female", ("C", "T")) for _ in range(40)) + group("female", none=3)
    assert released(clear(world, alts=("C", "T"))) == {}
    assert set(released(clear(world + group("female", none=7), alts=("C", "T")))) == {
        (tables.label(alt), "all") for alt in ("C", "T")
    }


def test_what_is_given_does_not_depend_on_which_alleles_were_asked_for() -> None:
    world = tuple(Person("female", ("C", "T")) for _ in range(40)) + group("female", none=3)
    summary = tables.collected({POSITION: world}, ("C", "T"), stratified=False)
    outcome = clear_allele_counts(summary, cohort=tables.cohort(world), asked=Asked((C,)), rules=RULES)
    assert released(outcome) == {}


def test_an_allele_that_was_not_asked_for_does_not_leave() -> None:
    world = tuple(Person("female", ("C", "T")) for _ in range(40)) + group("female", none=30)
    summary = tables.collected({POSITION: world}, ("C", "T"), stratified=False)
    outcome = clear_allele_counts(summary, cohort=tables.cohort(world), asked=Asked((C,)), rules=RULES)
    assert isinstance(outcome, Cleared)
    assert outcome.summary.axes["variant"] == (C,)


def test_an_rs_id_stands_for_the_variants_that_carry_it() -> None:
    world = group("female", none=30, one=30)
    summary = replace(tables.collected({POSITION: world}, ("C",), stratified=False), notes={C: "rs4988235"})
    outcome = clear_allele_counts(summary, cohort=tables.cohort(world), asked=Asked(("rs4988235",)), rules=RULES)
    assert isinstance(outcome, Cleared)
    assert outcome.summary.notes == {C: "rs4988235"}


@pytest.mark.parametrize(
    "asked", [Asked(("1:1:A:C",)), Asked(("rs7",)), Asked(region=Region(2, 1, 1000)), Asked(region=Region(3, 1, 10**9))]
)
def test_a_variant_that_was_not_asked_for_makes_the_summary_invalid(asked: Asked) -> None:
    with pytest.raises(HansaError) as refusal:
        clear(group("female", none=30, one=30), asked=asked)
    assert (refusal.value.reason, refusal.value.field) == (Reason.SUMMARY_CORRUPT, "axes.variant")
    assert POSITION not in str(refusal.value)


def test_strata_that_were_not_asked_for_make_the_summary_invalid() -> None:
    world = group("female", none=30, one=30)
    with pytest.raises(HansaError):
        clear_allele_counts(
            tables.collected({POSITION: world}, ("C",)), cohort=tables.cohort(world), asked=Asked((C,)), rules=RULES
        )


def test_the_order_of_the_run_does_not_leave() -> None:
    world = group("female", none=30, one=30)
    positions = ["3:5", "2:900", "2:1000", "10:7"]
    summary = tables.collected(dict.fromkeys(positions, world), ("C",), stratified=False)
    asked = Asked(tuple(summary.axes["variant"]))
    outcome = clear_allele_counts(summary, cohort=tables.cohort(world), asked=asked, rules=RULES)
    assert isinstance(outcome, Cleared)
    assert outcome.summary.axes["variant"] == ("2:900:A:C", "2:1000:A:C", "3:5:A:C", "10:7:A:C")


def test_what_leaves_fits_the_released_schema() -> None:
    outcome = clear(group("female", none=30, one=30) + group("male", none=30, one=30))
    assert isinstance(outcome, Cleared)
    data = summary_bytes(outcome.summary)
    assert parse_summary(data, tables.SPEC, released_only=True) == outcome.summary
    assert b"carriers" not in data
    assert b"others" not in data


def test_the_output_checker_learns_how_many_cells_each_rule_took() -> None:
    world = group("female", none=30, one=30) + group("male", none=30, one=9)
    outcome = clear(world, alts=("C", "T"))
    assert outcome.checks == (
        Check("min-cohort", Outcome.PASS, 0),
        Check("min-carriers", Outcome.SUPPRESSED, 1),
        Check("alleles-together", Outcome.PASS, 0),
        Check("strata-together", Outcome.SUPPRESSED, 2),
    )


def test_a_stricter_policy_takes_more() -> None:
    world = group("female", none=30, one=30)
    assert released(clear(world, rules=CountRules(min_carriers=31))) == {}
    assert isinstance(clear(world, rules=CountRules(min_cohort=61)), Withheld)


@pytest.mark.parametrize(("cohort", "carriers"), [(19, 10), (20, 9), (0, 0), (-1, 10)])
def test_no_policy_is_weaker_than_the_rule(cohort: int, carriers: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        CountRules(cohort, carriers)


def altered(name: str, key: tuple[str, str], value: float | None) -> Summary:
    world = group("female", none=30, one=30) + group("male", none=30, one=30)
    summary = tables.collected({POSITION: world}, ("C",))
    cells = {k: v for k, v in {**summary.arrays[name].cells, key: value}.items() if v is not None}
    return replace(summary, arrays={**summary.arrays, name: replace(summary.arrays[name], cells=cells)})


@pytest.mark.parametrize("value", [-1, 1, 59, 61, 10**12, 2.0, None])
@pytest.mark.parametrize("stratum", ["all", "female", "unknown"])
@pytest.mark.parametrize("name", ["people", "an", "ac", "carriers", "others"])
def test_a_cell_that_contradicts_the_others_makes_the_summary_invalid(
    name: str, stratum: str, value: float | None
) -> None:
    summary = altered(name, (C, stratum), value)
    with pytest.raises(HansaError) as refusal:
        clear_allele_counts(summary, cohort={"female": 60, "male": 60}, asked=Asked((C,), stratified=True), rules=RULES)
    assert refusal.value.reason is Reason.SUMMARY_CORRUPT


def test_more_people_than_the_node_knows_make_the_summary_invalid() -> None:
    world = group("female", none=30, one=30)
    with pytest.raises(HansaError):
        clear_allele_counts(
            tables.collected({POSITION: world}, ("C",), stratified=False),
            cohort={"female": 59},
            asked=Asked((C,)),
            rules=RULES,
        )


def test_a_summary_without_the_arrays_of_the_rule_is_invalid() -> None:
    world = group("female", none=30, one=30)
    summary = tables.collected({POSITION: world}, ("C",), stratified=False)
    fewer = replace(summary, arrays={n: a for n, a in summary.arrays.items() if n != "others"})
    with pytest.raises(HansaError):
        clear_allele_counts(fewer, cohort={"female": 60}, asked=Asked((C,)), rules=RULES)


def test_a_job_asks_for_variants_or_for_a_region() -> None:
    assert Asked.from_parameters({"variants": "rs7,1:2:A:C"}) == Asked(("rs7", "1:2:A:C"))
    assert Asked.from_parameters({"region": "2:5-9", "stratify": "sex"}) == Asked(
        region=Region(2, 5, 9), stratified=True
    )
    for wrong in ({}, {"variants": "rs7", "region": "2:5-9"}):
        with pytest.raises(ValueError, match="variants or for a region"):
            Asked.from_parameters(wrong)


def test_a_cohort_is_counted_by_sex() -> None:
    world = group("female", none=30, one=30)
    with pytest.raises(ValueError, match="counts people by"):
        clear_allele_counts(
            tables.collected({POSITION: world}, ("C",), stratified=False),
            cohort={"all": 60},
            asked=Asked((C,)),
            rules=RULES,
        )
