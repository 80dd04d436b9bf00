"""The node's cluster on a real RabbitMQ instead of the agent's own broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.execution_cluster import GOOD, Cluster, cluster
from tests.support.rabbitmq import private_rabbitmq

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def node() -> Iterator[Cluster]:
    with private_rabbitmq() as url, cluster("all", configured_broker=url) as started:
        yield started


def test_a_run_and_its_rules_go_through_rabbitmq(node: Cluster) -> None:
    run_id, report = node.run(GOOD)
    assert report["outcome"] == "summary", node.agent.log(run_id) + node.worker_log()


def test_a_message_that_comes_twice_through_rabbitmq_runs_once(node: Cluster) -> None:
    run_id = node.add_run(GOOD)
    for _ in range(2):
        node.enqueue(run_id)
    node.agent.wait(lambda: node.agent.refused_claims.count(run_id) == 1)
    assert node.agent.report(run_id)["outcome"] == "summary"
    assert len(node.agent.runs[run_id].claimed_by) == 1
