"""Coming again: never earlier than asked, never for ever, and not together with the others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.contract.errors import Reason
from hansa.sdk.errors import RemoteError
from hansa.sdk.patience import PATIENCE_SECONDS, Patience


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def refusal(retry: float) -> RemoteError:
    return RemoteError(Reason.OVERLOADED, retry_seconds=retry)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.floats(0, 1, exclude_max=True))
def test_every_pause_is_as_long_as_asked_and_all_together_are_bounded(hints: list[float], drawn: float) -> None:
    ticks = Ticks()
    patience = Patience(ticks, lambda: drawn)
    for hint in hints:
        pause = patience.pause(refusal(hint))
        if pause is None:
            break
        assert pause >= hint
        assert pause > 0
        ticks.now += pause
    assert ticks.now <= PATIENCE_SECONDS


def test_a_hint_of_nearly_nothing_makes_nobody_hammer() -> None:
    ticks = Ticks()
    patience = Patience(ticks, lambda: 0.0)
    pauses = 0
    while (pause := patience.pause(refusal(0.001))) is not None:
        ticks.now += pause
        pauses += 1
    assert pauses < 50


def test_two_who_were_refused_together_do_not_come_back_together() -> None:
    first = Patience(Ticks(), lambda: 0.1).pause(refusal(10))
    assert first != Patience(Ticks(), lambda: 0.9).pause(refusal(10))


def test_an_answer_makes_patience_new() -> None:
    ticks = Ticks()
    patience = Patience(ticks, lambda: 0.0)
    ticks.now = PATIENCE_SECONDS
    assert patience.pause(refusal(5)) is None
    patience.renew()
    assert patience.pause(refusal(5)) == 5


async def test_what_is_not_worth_waiting_for_is_raised_and_what_is_is_told() -> None:
    told: list[float] = []
    patience = Patience(Ticks(), lambda: 0.0, lambda _refusal, seconds: told.append(seconds))
    final = RemoteError(Reason.DATASET_UNKNOWN)
    with pytest.raises(RemoteError) as caught:
        await patience.wait(final)
    assert caught.value is final
    assert told == []
    await patience.wait(refusal(0.001))
    assert len(told) == 1
