"""Whole runs through real broker, Celery workers and sandboxes; only the agent is a double."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator

import pytest

from tests.support.execution_cluster import GOOD, Cluster, bad_bundle, cluster, processes_of

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


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fails", "ANALYSIS_FAILED"),
        ("raises", "ANALYSIS_FAILED"),
        ("writes_nothing", "OUTPUT_MISSING"),
        ("writes_two", "OUTPUT_AMBIGUOUS"),
        ("writes_a_lookalike", "OUTPUT_AMBIGUOUS"),
        ("wrong_type", "SUMMARY_INVALID"),
        ("not_json", "SUMMARY_INVALID"),
        ("links_to_data", "OUTPUT_KIND"),
        ("links_hard", "OUTPUT_KIND"),
        ("makes_a_fifo", "OUTPUT_KIND"),
        ("makes_a_folder", "OUTPUT_KIND"),
        ("too_large", "OUTPUT_TOO_LARGE"),
        ("sparse_terabyte", "OUTPUT_TOO_LARGE"),
        ("hogs_memory", "MEMORY_LIMIT"),
        ("hogs_memory_while_read", "MEMORY_LIMIT"),
        ("hogs_disk", "SCRATCH_LIMIT"),
        ("forks_too_often", "PROCESS_LIMIT"),
        ("breaks_the_wire", "ANALYSIS_FAILED"),
        ("leaves_a_daemon", "OUTPUT_MISSING"),
    ],
)
def test_a_misbehaving_analysis_ends_in_one_class_and_an_incident(node: Cluster, name: str, reason: str) -> None:
    run_id, report = node.run(bad_bundle(node.state, name))
    said = node.agent.log(run_id)
    assert (report["outcome"], report["reason"]) == ("failed", reason), said
    assert report["summary"] is None
    assert re.fullmatch(r"[0-9A-F]{8}", report["incident"])
    incident = (node.agent.control_dir(run_id) / "incident").read_text()
    assert incident == f"{report['incident']} {reason}\n"
    assert report["incident"] in said
    assert nothing_runs(node, run_id)


@pytest.mark.parametrize("name", ["hangs", "hangs_while_read", "fork_bomb"])
def test_a_run_past_its_time_limit_is_killed_with_all_its_processes(node: Cluster, name: str) -> None:
    run_id, report = node.run(bad_bundle(node.state, name), wall_seconds=6)
    assert (report["outcome"], report["reason"]) == ("failed", "TIME_LIMIT"), node.agent.log(run_id)
    assert nothing_runs(node, run_id)


def test_two_gigabytes_of_output_neither_block_a_run_nor_fill_the_disk(node: Cluster) -> None:
    run_id, report = node.run(bad_bundle(node.state, "loud"), wall_seconds=120)
    assert report["reason"] == "OUTPUT_MISSING", node.agent.log(run_id)[-2000:]
    control = node.agent.control_dir(run_id)
    assert sum(path.stat().st_size for path in control.iterdir()) < 2 << 20
    assert "first words" in node.agent.log(run_id)
    assert "last words" in node.agent.log(run_id)


def test_nothing_outside_of_the_sandbox_can_be_reached_or_changed(node: Cluster) -> None:
    secret = node.state / "keys"
    secret.mkdir()
    (secret / "node.key").write_text("private")
    abstract = f"hansa-test-{node.state.name}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unix,
    ):
        unix.bind("\0" + abstract)
        unix.listen()
        paths = [str(secret / "node.key"), str(node.state), str(node.state / "agent.sock"), "/root/.ssh", "/home"]
        targets = {"tcp": tcp.getsockname()[1], "abstract": abstract, "paths": paths}
        run_id, report = node.run(bad_bundle(node.state, "probes", targets))
    said = node.agent.log(run_id)
    assert "GOT THROUGH" not in said, said
    assert "tried" in said
    assert report["reason"] == "OUTPUT_MISSING", said
    assert (node.state / "datasets" / "D" / "1" / "genotypes.txt").read_text() == "0123456789"


def test_a_cancelled_run_is_confirmed_only_when_nothing_of_it_runs(node: Cluster) -> None:
    run_id = node.submit(bad_bundle(node.state, "hangs_and_is_cancelled"))
    node.agent.wait(lambda: "rule" in node.agent.log(run_id) and node.agent.runs[run_id].beats > 0)
    assert not nothing_runs(node, run_id)
    node.agent.runs[run_id].cancel = True
    report = node.agent.report(run_id)
    assert (report["outcome"], report["reason"], report["incident"]) == ("cancelled", "CANCELLED", None)
    assert nothing_runs(node, run_id)


def test_a_message_that_comes_twice_runs_once(node: Cluster) -> None:
    run_id = node.add_run(GOOD)
    for _ in range(3):
        node.enqueue(run_id)
    node.agent.wait(lambda: node.agent.refused_claims.count(run_id) == 2)
    assert node.agent.report(run_id)["outcome"] == "summary"
    assert len(node.agent.runs[run_id].claimed_by) == 1


def test_a_run_that_ended_while_the_agent_was_away_is_reported_when_it_is_back(node: Cluster) -> None:
    run_id = node.submit(bad_bundle(node.state, "waits_for_a_file"))
    node.agent.wait(lambda: "rule" in node.agent.log(run_id))
    node.agent.stop()
    (node.agent.work_dir(run_id) / "go").touch()
    node.agent.wait(lambda: "report_unheard" in node.worker_log())
    node.agent.start()
    assert node.agent.report(run_id)["outcome"] == "summary"


def nothing_runs(node: Cluster, run_id: str) -> bool:
    return not processes_of(node.state / "runs" / run_id)
