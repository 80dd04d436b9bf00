"""What a node's figures say of its store, its link and its broker."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from node_agent.metrics import Looked, NodeMetrics
from tests.support.agent import START, Bench, job, make_bench, offer


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    yield made
    made.database.close()


def metrics(bench: Bench, acked: Callable[[], int | None], broker: Callable[[], object] = lambda: None) -> NodeMetrics:
    looked = Looked(
        folder=bench.state.path,
        clock=lambda: START + timedelta(minutes=2),
        acked=acked,
        online=lambda: True,
        clock_ahead=lambda: -31,
        certificate_end=lambda: START,
        reach_broker=broker,
    )
    return NodeMetrics(bench.database, looked)


def value(made: NodeMetrics, name: str, **labels: str) -> float:
    found = made.board.registry.get_sample_value(f"hansa_node_{name}", labels)
    assert found is not None, name
    return found


async def test_figures_count_runs_by_state_and_outcome_and_what_waits_for_the_coordinator(bench: Bench) -> None:
    await bench.running(job())
    bench.wishes.draining = True
    await bench.offer(offer(job()))
    events = await bench.events()
    made = metrics(bench, lambda: events - 3)
    await made.read()
    assert (value(made, "runs", state="RUNNING"), value(made, "runs", state="DECLINED")) == (1, 1)
    assert value(made, "runs_ended", state="DECLINED", reason="NODE_DRAINING") == 1
    assert (value(made, "outbox_depth"), value(made, "outbox_oldest_seconds")) == (3, 120)
    assert (value(made, "online"), value(made, "clock_ahead_seconds")) == (1, -31)
    assert value(made, "certificate_left_seconds") == -120
    assert value(made, "broker_reachable") == 1


async def test_what_is_not_known_yet_is_no_number_and_a_broker_that_is_away_is_said(bench: Bench) -> None:
    def away() -> None:
        raise ConnectionError

    made = metrics(bench, lambda: None, away)
    await made.read()
    assert math.isnan(value(made, "outbox_depth"))
    assert math.isnan(value(made, "outbox_oldest_seconds"))
    assert value(made, "broker_reachable") == 0
