"""Summaries: the merge is an algebra, the bytes are faithful, hostile bytes are refused."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.contract.errors import HansaError, Reason
from hansa.contract.manifest import SummarySpec
from hansa.contract.summary import Array, Summary, merge, parse_summary, summary_bytes
from tests.support import allele_tables as tables
from tests.support.allele_tables import Person

VARIANTS = ("1:10:A:C", "1:10:A:G", "2:5:CT:C", "22:7:G:T")
GROUPS = ("all", "female")
CANARY = "sample-HG00171"

SPEC = SummarySpec.model_validate_json(
    json.dumps(
        {
            "axes": {"variant": {"labels": "variant"}, "stratum": {"labels": "choice", "choices": GROUPS}},
            "arrays": {
                "count": {"dtype": "int64", "axes": ["variant", "stratum"], "merge": "sum", "released": True},
                "least": {"dtype": "int64", "axes": ["variant"], "merge": "min", "released": True},
                "most": {"dtype": "float64", "axes": [], "merge": "max", "released": True},
                "weight": {"dtype": "float64", "axes": ["stratum"], "merge": "sum", "released": True},
                "secret": {"dtype": "int64", "axes": ["variant"], "merge": "sum", "released": False},
            },
        }
    )
)
integers = st.one_of(st.integers(-100, 100), st.integers(-(1 << 60), 1 << 60))
# Dyadic, so that floating sums are exact and the algebra can be asked for exactly.
floats = st.integers(-(1 << 20), 1 << 20).map(lambda number: number / 1024)


@st.composite
def summaries(draw: st.DrawFn) -> Summary:
    axes = {
        "variant": tuple(draw(st.lists(st.sampled_from(VARIANTS), unique=True))),
        "stratum": tuple(draw(st.lists(st.sampled_from(GROUPS), unique=True))),
    }
    arrays = {}
    for name, spec in SPEC.arrays.items():
        keys = list(itertools.product(*(axes[axis] for axis in spec.axes)))
        value = integers if spec.dtype == "int64" else floats
        cells = draw(st.fixed_dictionaries({}, optional=dict.fromkeys(keys, value)))
        arrays[name] = Array(spec.dtype, spec.axes, spec.merge, cells)
    notes = draw(st.fixed_dictionaries({}, optional={label: st.just(f"rs{len(label)}") for label in axes["variant"]}))
    return Summary(axes, arrays, notes)


def sorted_axes(summary: Summary) -> Summary:
    return merge([summary])


@given(summaries())
def test_the_bytes_of_a_summary_are_the_summary(summary: Summary) -> None:
    assert parse_summary(summary_bytes(summary), SPEC, released_only=False) == summary


@given(st.lists(summaries(), min_size=1, max_size=5), st.randoms())
def test_the_order_of_the_parts_is_nothing(parts: list[Summary], random: Any) -> None:
    shuffled = random.sample(parts, len(parts))
    assert summary_bytes(merge(shuffled)) == summary_bytes(merge(parts))


@given(summaries(), summaries(), summaries())
def test_parts_may_be_merged_in_steps(one: Summary, two: Summary, three: Summary) -> None:
    assert merge([merge([one, two]), three]) == merge([one, merge([two, three])]) == merge([one, two, three])


@given(summaries())
def test_a_part_that_says_nothing_changes_nothing(summary: Summary) -> None:
    arrays = {name: Array(a.dtype, a.axes, a.merge, {}) for name, a in summary.arrays.items()}
    nothing = Summary(dict.fromkeys(summary.axes, ()), arrays)
    assert merge([summary, nothing]) == sorted_axes(summary)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20), st.randoms())
def test_any_floats_sum_alike_in_any_order(values: list[float], random: Any) -> None:
    def parts(numbers: Sequence[float]) -> list[Summary]:
        return [Summary({}, {"x": Array("float64", (), "sum", {(): number})}) for number in numbers]

    merged = merge(parts(values)).arrays["x"].cells[()]
    assert merged == merge(parts(random.sample(values, len(values)))).arrays["x"].cells[()] == math.fsum(values)


genotypes = st.one_of(st.none(), st.tuples(st.sampled_from("ACGT"), st.sampled_from("ACGT")))
people = st.builds(Person, st.sampled_from(("female", "male", "unknown")), genotypes)


@given(st.lists(people, max_size=60), st.integers(0, 60), st.integers(0, 60))
def test_the_merge_of_the_parts_is_the_summary_of_the_whole(world: list[Person], first: int, second: int) -> None:
    low, high = sorted((first, second))
    parts = [tuple(world[:low]), tuple(world[low:high]), tuple(world[high:])]
    merged = merge([tables.collected({tables.POSITION: part}) for part in parts])
    assert merged == sorted_axes(tables.collected({tables.POSITION: tuple(world)}))


def test_a_sum_that_is_no_int64_is_an_error() -> None:
    part = Summary({}, {"x": Array("int64", (), "sum", {(): (1 << 63) - 1})})
    with pytest.raises(OverflowError):
        merge([part, part])


def test_parts_of_different_schemas_do_not_merge() -> None:
    one = Summary({}, {"x": Array("int64", (), "sum", {})})
    for other in (Summary({}, {"y": Array("int64", (), "sum", {})}), Summary({}, {"x": Array("int64", (), "min", {})})):
        with pytest.raises(ValueError, match="different"):
            merge([one, other])
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])


# --- hostile bytes ---------------------------------------------------------------------------

hostile = st.sampled_from(
    [
        None,
        True,
        2,
        1.5,
        -1,
        1 << 63,
        CANARY,
        [CANARY],
        {CANARY: CANARY},
        {},
        [],
        "",
        f"1:10:A:{CANARY}",
        1e400,
        "\ud800",
    ]
)


def slots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *itertools.chain.from_iterable(slots(child, (*path, key)) for key, child in inner)]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def refusal_of(data: bytes, *, released_only: bool = False) -> HansaError | None:
    try:
        parse_summary(data, SPEC, released_only=released_only)
    except HansaError as error:
        return error
    return None


def assert_says_nothing(error: HansaError) -> None:
    assert error.reason is Reason.SUMMARY_CORRUPT
    # A log with the traceback would show the cause too.
    assert error.__suppress_context__ or error.__context__ is None
    assert error.__cause__ is None
    assert CANARY not in f"{error} {error.public} {error.field}"


@given(summaries(), st.data())
def test_a_hostile_value_anywhere_is_refused_in_words_without_data(summary: Summary, data: st.DataObject) -> None:
    value = json.loads(summary_bytes(summary))
    path = data.draw(st.sampled_from(slots(value)))
    new = data.draw(hostile)
    changed = json.dumps(replaced(value, path, new)).encode()
    error = refusal_of(changed)
    if error is not None:
        assert_says_nothing(error)
    else:
        # What passes is what the schema allows, and is read as it stands.
        again = summary_bytes(parse_summary(changed, SPEC, released_only=False))
        assert CANARY.encode() not in again


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_words_without_data(data: bytes) -> None:
    error = refusal_of(data)
    assert error is not None
    assert_says_nothing(error)


@pytest.mark.parametrize(
    "data",
    [
        b'{"v":1,"v":1}',
        b"[" * 100_000,
        b'{"v":' + b"9" * 10_000 + b"}",
        b'{"v":NaN,"axes":{},"notes":{},"arrays":{}}',
        b"\xff\xfe",
        b"",
    ],
)
def test_tricks_of_json_are_refused(data: bytes) -> None:
    error = refusal_of(data)
    assert error is not None
    assert_says_nothing(error)


@given(summaries())
def test_an_array_that_must_not_leave_is_refused_where_only_released_ones_are_expected(summary: Summary) -> None:
    assert refusal_of(summary_bytes(summary), released_only=True) is not None
    arrays = {name: array for name, array in summary.arrays.items() if name != "secret"}
    assert refusal_of(summary_bytes(Summary(summary.axes, arrays, summary.notes)), released_only=True) is None


@pytest.mark.parametrize("version", [True, 1.0, "1", 2, None])
def test_another_version_is_refused(version: object) -> None:
    arrays = {name: Array(spec.dtype, spec.axes, spec.merge, {}) for name, spec in SPEC.arrays.items()}
    data = summary_bytes(Summary({"variant": (), "stratum": ()}, arrays))
    assert refusal_of(data) is None
    assert refusal_of(json.dumps({**json.loads(data), "v": version}).encode()) is not None
