"""Whole runs through real broker, Celery workers and sandboxes; only the agent is a double."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.execution_cluster import GOOD, Cluster, cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def node() -> Iterator[Cluster]:
    with cluster("all") as started:
        yield started


def test_a_run_reports_the_summary_that_its_analysis_wrote(node: Cluster) -> None:
    run_id, report = node.run(GOOD)
    assert report["outcome"] == "summary", node.agent.log(run_id) + node.worker_log()
    assert json.loads(report["summary"])["arrays"]["ac"]["values"] == [10]
    assert "counted" in node.agent.log(run_id)
