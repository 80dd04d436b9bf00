"""The sandbox itself, cold and warm, with a runner in this process and rules in a thread."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hansa.contract.errors import RunReason
from hansa.contract.manifest import Limits
from node_agent.execution.agent_client import AgentClient, Claimed, Finish, Outcome
from node_agent.execution.bubblewrap import BubblewrapSandbox, this_machine
from node_agent.execution.heart import Heart
from node_agent.execution.rules import run_rule
from node_agent.execution.runner import Runner
from tests.support.agent_stub import StubAgent, StubRun
from tests.support.execution_cluster import GOOD, LIMITS, bad_bundle, node_folder, processes_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="entering namespaces warm needs root; run the tests as root"),
]


class Bench:
    """One node without a broker: rules run in threads of this process."""

    def __init__(self, state: Path, agent: StubAgent, sandbox: BubblewrapSandbox) -> None:
        self.state, self.agent, self.sandbox = state, agent, sandbox
        self._rules: list[threading.Thread] = []

    def _enqueue(self, run_id: str, execution: int, number: int) -> None:
        arguments = (self.state / "runs", self.sandbox, run_id, execution, number)
        self._rules.append(threading.Thread(target=run_rule, args=arguments))
        self._rules[-1].start()

    def run(self, bundle: Path) -> tuple[Finish, str]:
        run_id = secrets.token_hex(16)
        data = self.state / "datasets" / "D" / "1"
        self.agent.runs[run_id] = StubRun(bundle, data, {"variants": "2:136608646:G:A"}, LIMITS, open=True)
        claimed = Claimed(
            run_id=run_id,
            execution=1,
            work_dir=self.agent.work_dir(run_id),
            bundle_dir=bundle,
            snakefile="Snakefile",
            parameters={"variants": "2:136608646:G:A"},
            snapshot_dir=data,
            limits=Limits.model_validate(LIMITS),
            deadline=datetime.now(UTC) + timedelta(minutes=10),
        )
        runner = Runner(
            sandbox=self.sandbox,
            enqueue_rule=self._enqueue,
            clock=lambda: datetime.now(UTC),
            draw_incident=lambda: "0BADCAFE",
        )
        client = AgentClient(self.state / "agent.sock")
        try:
            with Heart(client, claimed) as heart:
                report = runner.run(claimed, heart)
        finally:
            client.close()
            for thread in self._rules:
                thread.join()
        assert report is not None
        return report, self.agent.log(run_id)


@pytest.fixture(scope="module", params=["cold", "warm"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with node_folder() as state:
        agent = StubAgent(state)
        agent.start()
        sandbox = BubblewrapSandbox(this_machine(state.name), warm=request.param == "warm")
        yield Bench(state, agent, sandbox)
        sandbox.close()
        agent.stop()


def test_an_analysis_runs_alike_cold_and_warm(bench: Bench) -> None:
    report, said = bench.run(GOOD)
    assert report.outcome is Outcome.SUMMARY, said
    assert json.loads(report.summary or "")["arrays"]["ac"]["values"] == [10]


def test_cold_and_warm_sandboxes_let_nothing_through(bench: Bench) -> None:
    targets = {"tcp": 1, "abstract": "nobody", "paths": [str(bench.state), "/work/main", "/root/.bashrc"]}
    report, said = bench.run(bad_bundle(bench.state, "probes", targets))
    assert "GOT THROUGH" not in said, said
    assert said.count("tried") == 2
    assert report.reason is RunReason.OUTPUT_MISSING, said


def test_an_incident_stands_in_the_runs_log_and_beside_it(bench: Bench) -> None:
    report, said = bench.run(bad_bundle(bench.state, "fails"))
    assert (report.reason, report.incident) == (RunReason.ANALYSIS_FAILED, "0BADCAFE")
    assert said.rstrip().endswith("ANALYSIS_FAILED, incident 0BADCAFE")
    assert "about to fail" in said


def test_a_process_left_behind_by_an_analysis_is_killed(bench: Bench) -> None:
    report, said = bench.run(bad_bundle(bench.state, "leaves_a_daemon"))
    assert report.reason is RunReason.OUTPUT_MISSING, said
    assert not processes_of(bench.state / "runs")


def test_a_dataset_file_that_is_closed_to_the_sandbox_fails_the_analysis(bench: Bench) -> None:
    data = bench.state / "datasets" / "D" / "1" / "genotypes.txt"
    data.chmod(0o600)
    try:
        report, _ = bench.run(GOOD)
    finally:
        data.chmod(0o644)
    assert report.reason is RunReason.ANALYSIS_FAILED


def test_the_probe_says_what_the_sandbox_is_worth(bench: Bench) -> None:
    report = bench.sandbox.probe()
    assert report.usable
    assert report.driver == "bubblewrap"
    assert report.limits.startswith("cgroup v")
    assert bench.sandbox.warm is report.warm


def test_a_node_without_root_has_the_same_walls() -> None:
    command = (
        "id -u; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; touch /work/x; touch /bundle/x || echo kept;"
        " touch /x || echo closed; ls /sys || echo bare; grep -c : /proc/net/dev"
    )
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, "-m", "tests.support.unprivileged_sandbox", folder, command]
        run = subprocess.run(program, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert (Path(folder) / "work" / "x").stat().st_uid == 12_345
    said = run.stdout.split()
    assert said[0] == "65533"
    assert said[1:7] == ["CapEff:", "0000000000000000", "NoNewPrivs:", "1", "Seccomp:", "2"]
    assert {"kept", "closed", "bare"} <= set(said)
    assert said[-1] == "1", "only the loopback device"
