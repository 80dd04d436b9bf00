"""What a job's result says of frequencies."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from hansa.contract.summary import Array, Summary, merge
from hansa.statistics.frequencies import frequency_result, wilson

KEYS = {"people", "ac", "an", "af", "ci95"}
V1, V2, V3 = "2:900:A:G", "2:1000:C:T", "10:5:G:A"


def part(
    cells: Mapping[tuple[str, str], tuple[int, int]],
    notes: Mapping[str, str] | None = None,
    strata: tuple[str, ...] = ("all",),
) -> Summary:
    """A released summary: people and allele count by variant and stratum."""
    labels = tuple(dict.fromkeys(label for label, _ in cells))
    arrays: dict[str, dict[tuple[str, ...], int | float]] = {
        "people": {key: people for key, (people, _) in cells.items()},
        "an": {key: 2 * people for key, (people, _) in cells.items()},
        "ac": {key: ac for key, (_, ac) in cells.items()},
    }
    return Summary(
        {"variant": labels, "stratum": strata},
        {name: Array("int64", ("variant", "stratum"), "sum", found) for name, found in arrays.items()},
        notes or {},
    )


FI = part({(V1, "all"): (100, 40), (V2, "all"): (100, 60)}, {V1: "rs12"})
GB = part({(V1, "all"): (90, 30)}, {V1: "rs12"})
BOTH = {"FI": FI, "GB": GB}


def result(
    parts: Mapping[str, Summary], requested: tuple[str, ...] | None, nodes: str = "FI GB"
) -> list[dict[str, Any]]:
    return frequency_result(parts, requested=requested, nodes=nodes.split(), stratified=False)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_scipys(case: tuple[int, int]) -> None:
    successes, trials = case
    low, high = wilson(successes, trials)
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-12, abs=1e-15)
    assert 0 <= low <= successes / trials <= high <= 1


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5)])
def test_an_interval_needs_a_share(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="interval"):
        wilson(successes, trials)


def test_countries_and_pool_are_exact() -> None:
    (row,) = result(BOTH, (V1,))
    assert (row["variant"], row["rsid"]) == (V1, "rs12")
    fi = row["countries"]["FI"]
    assert fi == {"people": 100, "ac": 40, "an": 200, "af": 0.2, "ci95": list(wilson(40, 200)), "status": "released"}
    assert row["pooled"] == {
        "people": 190,
        "ac": 70,
        "an": 380,
        "af": 70 / 380,
        "ci95": list(wilson(70, 380)),
        "partial": False,
        "countries": ["FI", "GB"],
    }


def test_a_country_that_gives_nothing_makes_the_pool_partial() -> None:
    (row,) = result(BOTH, (V2,), nodes="ES FI GB")
    assert {node: country["status"] for node, country in row["countries"].items()} == {
        "ES": "no_answer",
        "FI": "released",
        "GB": "suppressed",
    }
    assert all(row["countries"]["GB"][key] is None for key in KEYS)
    assert (row["pooled"]["partial"], row["pooled"]["countries"], row["pooled"]["ac"]) == (True, ["FI"], 60)


def test_a_variant_that_nobody_gives_is_suppressed_everywhere() -> None:
    for name in (V3, "rs99"):
        (row,) = result(BOTH, (name,))
        assert (row["variant"], row["rsid"]) == (name, "rs99" if name == "rs99" else None)
        assert {country["status"] for country in row["countries"].values()} == {"suppressed"}
        assert all(row["pooled"][key] is None for key in KEYS)
        assert (row["pooled"]["partial"], row["pooled"]["countries"]) == (True, [])


def test_nothing_released_still_gives_every_row() -> None:
    (row,) = result({}, ("rs12",))
    assert {country["status"] for country in row["countries"].values()} == {"no_answer"}
    assert row["pooled"]["an"] is None


def test_rows_follow_the_request_and_regions_the_genome() -> None:
    assert [row["variant"] for row in result(BOTH, (V2, "rs12", V3))] == [V2, V1, V3]
    assert [row["variant"] for row in result({"FI": FI, "GB": part({(V3, "all"): (50, 20)})}, None)] == [V1, V2, V3]


def test_an_rs_id_of_several_alleles_gives_a_row_for_each() -> None:
    other = "2:900:A:C"
    fi = part({(V1, "all"): (100, 40), (other, "all"): (100, 50)}, {V1: "rs12", other: "rs12"})
    rows = result({"FI": fi}, ("rs12", V1), nodes="FI")
    assert [(row["variant"], row["rsid"]) for row in rows] == [(other, "rs12"), (V1, "rs12")]


def test_an_impossible_figure_counts_as_not_given() -> None:
    bad = part({(V1, "all"): (10, 21)})
    (row,) = result({"FI": FI, "GB": bad}, (V1,))
    assert row["countries"]["GB"]["status"] == "suppressed"
    assert row["pooled"]["ac"] == 40
    assert row["pooled"]["partial"]


def test_strata_stand_below_each_country_and_the_pool() -> None:
    strata = ("all", "female", "male", "unknown")
    fi = part({(V1, "all"): (100, 40), (V1, "female"): (60, 30), (V1, "male"): (40, 10)}, strata=strata)
    gb = part({(V1, "all"): (90, 30)}, strata=strata)
    (row,) = frequency_result({"FI": fi, "GB": gb}, requested=(V1,), nodes=["FI", "GB"], stratified=True)
    assert row["countries"]["FI"]["strata"]["female"]["ac"] == 30
    assert row["countries"]["GB"]["strata"]["male"]["status"] == "suppressed"
    assert row["countries"]["GB"]["status"] == "released"
    pooled = row["pooled"]["strata"]
    assert (pooled["male"]["ac"], pooled["male"]["partial"], pooled["male"]["countries"]) == (10, True, ["FI"])
    assert set(pooled["female"]) == KEYS | {"partial", "countries"}


people_and_copies = st.integers(20, 500).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, 2 * n)))


@given(
    st.dictionaries(
        st.sampled_from(["FI", "GB", "ES", "IT"]),
        st.dictionaries(st.sampled_from([(V1, "all"), (V2, "all"), (V3, "all")]), people_and_copies),
    )
)
def test_the_pool_is_the_merge_of_what_was_given(
    given_cells: dict[str, dict[tuple[str, str], tuple[int, int]]],
) -> None:
    parts = {node: part(cells) for node, cells in given_cells.items()}
    whole = merge(list(parts.values())) if parts else None
    for row in result(parts, (V1, V2, V3), nodes="FI GB ES IT"):
        for name in ("people", "an", "ac"):
            assert row["pooled"][name] == (whole.arrays[name].cells.get((row["variant"], "all")) if whole else None)
