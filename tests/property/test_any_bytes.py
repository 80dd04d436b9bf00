"""Whatever a stranger writes, who reads it takes it or refuses it in words: no crash, no text from inside, no flood."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.corpus import Memory
from tests.support.parsers import feed, parsers

pytestmark = pytest.mark.slow

NAMES = sorted(parsers())


@st.composite
def spoilt(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Return good bytes with a few pieces changed, cut out, doubled or swapped for others."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        piece = draw(
            st.one_of(
                st.binary(max_size=12),
                st.just(data[start:end] * 2),
                st.sampled_from(
                    [b"null", b"-1", b"1e999", b"NaN", b'"', b"\\u0000", b"{", b"[" * 9, b"\xff", b"9" * 40]
                ),
            )
        )
        data = data[:start] + piece + data[end:]
    return data


@pytest.mark.parametrize("name", NAMES)
def test_good_bytes_are_taken_or_refused_for_what_they_say(name: str) -> None:
    parser = parsers()[name]
    assert parser.seeds()
    for seed in parser.seeds():
        feed(parser, seed)


@pytest.mark.parametrize("name", NAMES)
def test_spoilt_bytes_are_read_or_refused_in_words(name: str) -> None:
    parser, memory = parsers()[name], Memory()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(spoilt(parser.seeds()))
    def read(data: bytes) -> None:
        feed(parser, data)

    read()
    memory.check()


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_read_or_refused_in_words(name: str) -> None:
    parser = parsers()[name]

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=300))
    def read(data: bytes) -> None:
        feed(parser, data)

    read()


@pytest.mark.parametrize("name", NAMES)
def test_a_megabyte_of_one_byte_costs_no_more_than_it_may(name: str) -> None:
    parser = parsers()[name]
    floods = [byte * (1 << 20) for byte in (b"[", b"{", b"\x0a", b"\x00", b"\xff", b"9", b'"', b" ")]
    memory = Memory()
    for flood in floods:
        feed(parser, flood)
    memory.check()
