"""What is seen from outside of a federation at work: one job's story in all logs, a node's figures, and its way back."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.local.cast import OPERATOR, SECOND_OPERATOR
from tests.support.coordinator_process import free_ports
from tests.support.local_federation import COUNTRIES, Federation, eventually
from tests.support.scrape import scrape

pytestmark = pytest.mark.slow

_ASKED = "rs12913832"
NODE = "ES"


def lines(log: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the events of a log, whatever else its process wrote."""
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            assert isinstance(found, dict)
            yield found


def story(log: Path, job_id: str) -> list[Mapping[str, Any]]:
    return [line for line in lines(log) if line.get("job_id") == job_id]


def test_one_jobs_story_is_told_by_all_logs_under_its_id(federation: Federation) -> None:
    layout = federation.layout
    job = federation.submit("--dataset", f"{NODE}-aisnp", "--dataset", "FI-aisnp", "--param", f"variants={_ASKED}")
    assert federation.hansa("job", "watch", job).code == 0

    coordinator = story(layout.coordinator.log_file, job)
    assert {"job_submitted", "run_reported", "summary_stored", "job_ended"} <= {line["event"] for line in coordinator}
    assert {line["node"] for line in coordinator if line["event"] == "run_reported"} == {NODE, "FI"}
    for node in (NODE, "FI"):
        agent, worker = (story(daemon.log_file, job) for daemon in (layout.node(node).agent, layout.node(node).worker))
        states = [line["state"] for line in agent if line["event"] == "run_state"]
        assert states == ["ACCEPTED", "QUEUED", "STAGING", "RUNNING", "CHECKING", "RELEASED"]
        assert [line["event"] for line in worker] == ["run_started", "run_succeeded"]
        runs = {line["run_id"] for line in (*agent, *worker)}
        told = {line["run_id"] for line in coordinator if line["event"] == "run_reported" and line["node"] == node}
        assert runs == told
        assert len(runs) == 1
        for line in (*agent, *worker):
            assert line["node"] == node
            assert line["level"] in {"info", "warning"}
        assert {line["execution"] for line in worker} == {1}
        assert any(
            line["event"] == "attached" and line["epoch"] >= 1 for line in lines(layout.node(node).agent.log_file)
        )


def test_a_nodes_figures_are_there_once_a_port_is_set_and_name_nobody(federation: Federation) -> None:
    node = federation.layout.node(NODE)
    (port,) = free_ports(1)
    _stop_agent(federation)
    settings = node.state / "agent.toml"
    settings.write_text(settings.read_text() + f"metrics_port = {port}\n")
    federation.restart_node(NODE)
    eventually(lambda: NODE in federation.connected(), "the node is back")

    job = federation.submit("--dataset", f"{NODE}-aisnp", "--param", f"variants={_ASKED}")
    assert federation.hansa("job", "watch", job).code == 0
    eventually(lambda: scrape(port).value("hansa_node_online") == 1, "the figures say that it is online")
    eventually(lambda: scrape(port).value("hansa_node_outbox_depth") == 0, "all that it had to tell is acknowledged")
    eventually(lambda: scrape(port).value("hansa_node_broker_reachable") == 1, "its broker answers")
    page = scrape(port)
    assert page.value("hansa_node_runs", state="RELEASED") >= 1
    assert page.value("hansa_node_offers_accepted_total") == 1
    assert page.value("hansa_node_disk_free_bytes") > 0
    assert page.value("hansa_node_certificate_left_seconds") > 3600
    assert page.value("hansa_node_loop_lag_seconds_count") > 0
    words = page.label_values
    assert all(word == "" or word.replace("_", "").isalpha() for word in words), words
    for private in (f"{NODE}-aisnp", "researcher", job, _ASKED, str(node.state)):
        assert private not in page.text


def test_a_node_with_a_new_certificate_goes_on_with_what_waited_meanwhile(federation: Federation) -> None:
    assert federation.at_node(NODE, "policy", "set", "release", "manual").code == 0
    try:
        job = federation.submit("--dataset", f"{NODE}-aisnp", "--param", f"variants={_ASKED}")
        eventually(lambda: federation.run_state(job, NODE) == "AWAITING_RELEASE", "the summary waits")
        token = _invited_again(federation)
        eventually(lambda: _standing(federation)["reason"] == "CERTIFICATE_REFUSED", "the node says so")
        (run,) = [one for one in federation.runs_waiting_at(NODE) if one["job_id"] == job]
        assert federation.decide(NODE, "release", run["run_id"], "fine").code == 0

        enrolled = federation.at_node(NODE, "enrol", "--again", token, "--output", "json")
        assert enrolled.code == 0, enrolled.err
        assert federation.job(job)["state"] == "PENDING", "nothing is told before the fingerprint was compared"
        fingerprint = enrolled.document["key_fingerprint"]
        confirmed = federation.hansa("admin", "node", "confirm", NODE, "--fingerprint", fingerprint, person=OPERATOR)
        assert confirmed.code == 0, confirmed.err

        assert federation.hansa("job", "watch", job).code == 0
        assert federation.job(job)["state"] == "COMPLETED"
        eventually(lambda: federation.connected() == set(COUNTRIES), "all nodes are connected")
    finally:
        assert federation.at_node(NODE, "policy", "set", "release", "auto").code == 0


def _standing(federation: Federation) -> dict[str, Any]:
    return federation.at_node(NODE, "status", "--output", "json").document


def _invited_again(federation: Federation) -> str:
    """Return the token that two operators make."""
    first, second = (
        federation.hansa("admin", "node", "invite", NODE, "--again", person=operator)
        for operator in (OPERATOR, SECOND_OPERATOR)
    )
    assert first.reason == "PENDING_SECOND"
    assert second.code == 0, second.err
    return str(second.document["token"])


def _stop_agent(federation: Federation) -> None:
    agent = federation.layout.node(NODE).agent.running()
    assert agent is not None
    os.kill(agent.pid, signal.SIGTERM)
    eventually(lambda: not agent.alive(), "the agent has ended")
