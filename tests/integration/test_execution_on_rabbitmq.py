"""The node's cluster on a real RabbitMQ instead of the agent's own broker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from node_agent.execution.celery_app import waiting_runs
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


def test_rabbitmq_tells_how_many_messages_wait_also_after_they_were_purged(node: Cluster) -> None:
    node.run(GOOD)
    node.agent.wait(lambda: waiting_runs(node.app) == 0)
    node.stop_worker("all")
    run_id = node.submit(GOOD)
    node.agent.wait(lambda: waiting_runs(node.app) == 1)
    with node.app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        channel.queue_purge("runs")
    node.agent.wait(lambda: waiting_runs(node.app) == 0)
    node.enqueue(run_id)
    node.start_worker("all")
    assert node.agent.report(run_id)["outcome"] == "summary"
