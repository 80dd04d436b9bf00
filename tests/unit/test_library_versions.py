"""Which versions of libraries are weak."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.runtime.versions import RULES, parse_version, weaknesses

NUMBERS = st.lists(st.integers(0, 99), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("library", "version", "weak"),
    [
        ("PyJWT", "2.12.1", True),
        ("PyJWT", "2.13.0", False),
        ("protobuf", "4.25.7", True),
        ("protobuf", "4.25.8", False),
        ("protobuf", "5.29.4", True),
        ("protobuf", "5.29.5", True),
        ("protobuf", "5.29.6", False),
        ("protobuf", "6.30.0", True),
        ("protobuf", "6.33.4", True),
        ("protobuf", "6.33.5", False),
        ("protobuf", "7.36.2", False),
        ("sqlite", "3.6.23", False),
        ("sqlite", "3.40.1", True),
        ("sqlite", "3.51.2", True),
        ("sqlite", "3.51.3", False),
        ("sqlite", "3.52.0", False),
        ("something", "0.0.1", False),
    ],
)
def test_known_defects_are_found_by_version_and_no_mended_one_is(library: str, version: str, weak: bool) -> None:
    found = weaknesses({library: version})
    assert [one.library for one in found] == ([library] if weak else [])
    assert all(one.mended and one.why for one in found)


@given(NUMBERS, st.sampled_from(["", "rc1", ".dev0", "+local", " "]))
def test_a_version_is_its_numbers(numbers: list[int], end: str) -> None:
    assert parse_version(".".join(map(str, numbers)) + end) == tuple(numbers)


def test_the_first_mended_version_of_each_rule_is_not_weak_by_that_rule() -> None:
    for rule in RULES:
        assert weaknesses({rule.library: ".".join(map(str, rule.mended))}, [rule]) == []


def test_a_library_that_is_not_there_is_not_judged() -> None:
    assert weaknesses({}) == []
