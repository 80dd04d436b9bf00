"""What happens to runs and rules when a program of the node is killed with -9."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import redis

from hansa.runtime.stopping import CUT_SHORT
from node_agent.execution.broker import EmbeddedBroker
from tests.support.execution_cluster import GOOD, Cluster, bad_bundle, cluster, processes_of

pytestmark = pytest.mark.slow


@pytest.fixture
def node() -> Iterator[Cluster]:
    with cluster("runs", "rules") as started:
        yield started


def _is_in_its_rule(node: Cluster, run_id: str) -> bool:
    return (node.agent.control_dir(run_id) / "rule-1.lock").exists() and _runs(node, run_id)


def _runs(node: Cluster, run_id: str) -> bool:
    return bool(processes_of(node.state / "runs" / run_id))


def test_a_killed_worker_leaves_nothing_running_and_the_next_execution_starts_anew(node: Cluster) -> None:
    run_id = node.submit(bad_bundle(node.state, "waits_for_a_file"))
    node.agent.wait(lambda: _is_in_its_rule(node, run_id))
    node.stop_worker("runs", signal.SIGKILL)
    node.agent.wait(lambda: not _runs(node, run_id))
    assert not node.agent.runs[run_id].reports

    node.agent.lose_lease(run_id)
    node.start_worker("runs")
    node.enqueue(run_id)
    node.agent.wait((node.agent.control_dir(run_id, 2) / "rule-1.lock").exists)
    (node.agent.work_dir(run_id, 2) / "go").touch()
    report = node.agent.report(run_id)
    assert (report["execution"], report["outcome"]) == (2, "summary"), node.agent.log(run_id, 2)


def test_a_rule_whose_worker_was_killed_is_run_again(node: Cluster) -> None:
    run_id = node.submit(bad_bundle(node.state, "waits_for_a_file"))
    node.agent.wait(lambda: _is_in_its_rule(node, run_id))
    node.stop_worker("rules", signal.SIGKILL)
    node.start_worker("rules")
    (node.agent.work_dir(run_id) / "go").touch()
    report = node.agent.report(run_id)
    assert report["outcome"] == "summary", node.agent.log(run_id) + node.worker_log()


def test_a_superseded_execution_is_killed_and_not_reported(node: Cluster) -> None:
    run_id = node.submit(bad_bundle(node.state, "hangs"))
    node.agent.wait(lambda: _is_in_its_rule(node, run_id))
    node.agent.lose_lease(run_id)
    node.agent.wait(lambda: not _runs(node, run_id))
    node.agent.wait(lambda: "run_superseded" in node.worker_log())
    assert not node.agent.runs[run_id].reports


def test_runs_start_again_after_the_fork_server_was_killed(node: Cluster) -> None:
    node.run(GOOD)
    servers = [pid for pid in _children(node.workers["runs"].pid) if b"fork_server" in _command(pid)]
    assert servers
    for pid in servers:
        os.kill(pid, signal.SIGKILL)
    for _ in range(2):
        run_id, report = node.run(GOOD)
        assert report["outcome"] == "summary", node.agent.log(run_id)


def test_a_broker_left_by_a_killed_agent_is_adopted_and_messages_are_kept(node: Cluster) -> None:
    node.stop_worker("runs")
    run_id = node.submit(GOOD)
    heir = EmbeddedBroker(node.state / "broker")
    heir.ensure_running()
    assert "broker_died" not in node.worker_log()
    node.start_worker("runs")
    assert node.agent.report(run_id)["outcome"] == "summary"


def test_messages_on_disk_survive_a_broker_that_is_killed(node: Cluster) -> None:
    node.stop_worker("runs")
    run_id = node.submit(GOOD)
    # While the file is being synced, redis holds writes back; the agent would send such a message again.
    written = node.state / "broker" / "appendonlydir"
    node.agent.wait(lambda: any(run_id.encode() in path.read_bytes() for path in written.iterdir()))
    os.kill(int((node.state / "broker" / "redis.pid").read_text()), signal.SIGKILL)
    node.broker.ensure_running()
    node.start_worker("runs")
    assert node.agent.report(run_id)["outcome"] == "summary"


def _children(parent: int) -> list[int]:
    with open(f"/proc/{parent}/task/{parent}/children") as file:  # noqa: PTH123
        children = [int(word) for word in file.read().split()]
    return children + [pid for child in children for pid in _children(child)]


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
            return file.read()
    except FileNotFoundError:
        return b""


def test_a_rule_whose_message_was_lost_is_sent_again(node: Cluster) -> None:
    node.stop_worker("rules")
    run_id = node.submit(GOOD)
    address = node.broker.url.replace("redis+socket", "unix").replace("?virtual_host=0", "")
    with redis.Redis.from_url(address) as client:
        node.agent.wait(lambda: client.llen("rules") == 1)
        client.delete("rules")
    node.start_worker("rules")
    assert node.agent.report(run_id)["outcome"] == "summary", node.agent.log(run_id)


def test_a_supervisor_that_is_told_to_stop_leaves_nothing_behind() -> None:
    with cluster("all") as node:
        run_id = node.submit(bad_bundle(node.state, "hangs"))
        node.agent.wait(lambda: _is_in_its_rule(node, run_id))
        workers = _children(node.workers["all"].pid)
        node.stop_worker("all", signal.SIGTERM)
        assert not _runs(node, run_id)
        assert not [pid for pid in workers if _command(pid)], "zombies have no command line"


def test_a_worker_on_its_own_ends_within_its_deadline_though_a_run_does_not(node: Cluster) -> None:
    run_id = node.submit(bad_bundle(node.state, "hangs"))
    node.agent.wait(lambda: _is_in_its_rule(node, run_id))
    worker = node.workers["runs"]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == CUT_SHORT
    assert "stop_deadline_passed" in node.worker_log()
    node.agent.wait(lambda: not _runs(node, run_id))
    # Not a word of it: the agent has it run again when the lease is over.
    assert not node.agent.runs[run_id].reports


def test_a_worker_that_dies_is_started_again_by_its_supervisor() -> None:
    with cluster("all") as node:
        node.run(GOOD)
        for pid in _children(node.workers["all"].pid):
            if b"node_agent.execution.worker" in _command(pid):
                os.kill(pid, signal.SIGKILL)
        node.agent.wait(lambda: node.worker_log().count("worker_started") == 4)
        run_id, report = node.run(GOOD)
        assert report["outcome"] == "summary", node.agent.log(run_id) + node.worker_log()
