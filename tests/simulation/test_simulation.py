"""Everything goes wrong, many thousand times, and nothing is lost and nothing done twice."""

from __future__ import annotations

import pytest

from tests.simulation.federation import live

# Each part injects at least so many; together more than 50,000.
FAULTS = 6_300
MOST_SEEDS = 80


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(8))
def test_no_promise_is_broken_whatever_goes_wrong(part: int) -> None:
    faults = seeds = ended = 0
    for seed in range(part * 1_000_000, part * 1_000_000 + MOST_SEEDS):
        outcome = live(seed)
        assert outcome.checks == outcome.steps, "every step is checked"
        faults += outcome.faults.total()
        ended += outcome.ends.total()
        seeds += 1
        if faults >= FAULTS:
            break
    assert faults >= FAULTS
    assert ended >= 10 * seeds, "what is asked goes on meanwhile"


def test_a_seed_tells_the_same_story_each_time() -> None:
    assert live(7) == live(7)
