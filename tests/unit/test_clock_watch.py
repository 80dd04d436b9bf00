"""Clocks that differ are noticed, and a message that was long on its way is no wrong clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from node_agent.doctor import FAILED, WARNING, against_coordinator
from node_agent.link.clock_watch import ClockWatch, difference

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
SECONDS = st.integers(0, 100_000).map(lambda seconds: timedelta(seconds=seconds))
NO_DELAY = timedelta()


@given(SECONDS, SECONDS)
def test_the_way_of_a_message_is_never_taken_for_a_wrong_clock(delay: timedelta, within: timedelta) -> None:
    assert difference(NOW, NOW - min(within, delay), delay) == NO_DELAY


@given(SECONDS, SECONDS)
def test_a_clock_that_is_off_is_seen_but_for_what_the_way_may_have_taken(off: timedelta, delay: timedelta) -> None:
    assert off - delay <= difference(NOW, NOW - off, delay) <= off
    assert difference(NOW, NOW + off, delay) == -off


@pytest.mark.parametrize(
    ("seconds", "wrong", "outcome"),
    [(0, False, None), (30, False, None), (-31, False, WARNING), (300, False, WARNING), (301, True, FAILED)],
)
def test_half_a_minute_is_worth_a_word_and_five_minutes_take_no_new_work(
    seconds: int, wrong: bool, outcome: str | None
) -> None:
    watch = ClockWatch()
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            watch.compare(NOW, NOW - timedelta(seconds=seconds), NO_DELAY)
    assert watch.is_wrong() is wrong
    found = against_coordinator(watch.ahead_seconds)
    assert (found.outcome if found else None) == outcome
    assert len(logs) == (outcome is not None), "told once, not with each heartbeat"


def test_a_clock_that_was_set_right_is_believed_again() -> None:
    watch = ClockWatch()
    watch.compare(NOW, NOW + timedelta(hours=1), NO_DELAY)
    assert (watch.is_wrong(), watch.ahead_seconds) == (True, -3600)
    watch.compare(NOW, NOW, NO_DELAY)
    assert not watch.is_wrong()
