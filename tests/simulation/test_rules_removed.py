"""The simulator notices: with any one rule taken out, some promise is soon found broken."""

from __future__ import annotations

import pytest

from tests.simulation.federation import live
from tests.simulation.mutants import ODDS, RULES_REMOVED
from tests.simulation.world import Violation

# Ten times what was needed, for each rule, when this was written.
MOST_SEEDS = 200


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rule", RULES_REMOVED)
def test_a_rule_taken_out_is_noticed(rule: str) -> None:
    found = next(filter(None, (violation_of(seed, rule) for seed in range(MOST_SEEDS))), "")
    assert "again: .venv/bin/python -m tests.simulation --seed" in found, f"nobody misses that {rule}"


def violation_of(seed: int, rule: str) -> str:
    """Return how ``seed`` ends without ``rule``; empty if nothing is broken."""
    try:
        live(seed, RULES_REMOVED[rule], ODDS.get(rule))
    except Violation as found:
        return str(found)
    return ""
