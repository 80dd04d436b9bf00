from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.config import create_state_folder
from node_agent.policy.file import store_policy
from node_agent.policy.policy import Policy
from tests.support.agent_double import AgentDouble, running_agent
from tests.support.genotypes import Dataset, record, write_dataset
from tests.support.node_commands import hansa_node


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentDouble]:
    state = create_state_folder(tmp_path / "state")
    store_policy(state.policy_file, Policy())
    double = AgentDouble(state)
    double.let_in.set()
    with running_agent(double):
        try:
            yield double
        finally:
            double.let_in.set()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path, [record("1:100", "A", "C", ["0/0", "0/1", "1/1", "./."])])


def arguments(dataset: Dataset) -> tuple[str, ...]:
    return ("dataset", "add", "FI-x", "--vcf", str(dataset.vcf), "--samples", str(dataset.samples))


def left_over(agent: AgentDouble) -> list[str]:
    return sorted(path.name for path in agent.state.datasets.iterdir())


def test_a_dataset_is_converted_and_handed_over_to_the_agent(agent: AgentDouble, dataset: Dataset) -> None:
    done = hansa_node(agent.state.path, *arguments(dataset))
    assert done.code == 0, done.err
    assert "symbolic: 1" in done.out
    assert left_over(agent) == ["FI-x"]
    assert (agent.state.datasets / "FI-x" / "snapshot.json").is_file()


def test_nothing_is_left_of_a_vcf_that_cannot_be_used(agent: AgentDouble, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    bad = write_dataset(tmp_path / "bad", [record("1:100", "A", "C", ["0/0", "0/1", "1/1", "./."])], indexed=False)
    done = hansa_node(agent.state.path, *arguments(bad), "--output", "json")
    assert done.code == 1
    assert json.loads(done.err)["error"]["reason"] == "VCF_NOT_INDEXED"
    assert left_over(agent) == []


def test_nothing_is_left_of_a_dataset_that_the_agent_refuses(agent: AgentDouble, dataset: Dataset) -> None:
    agent.refuse_datasets = True
    done = hansa_node(agent.state.path, *arguments(dataset), "--output", "json")
    assert (done.code, done.out) == (1, "")
    assert json.loads(done.err)["error"]["reason"] == "DATASET_INVALID"
    assert left_over(agent) == []


def test_a_known_id_is_refused_before_the_vcf_is_read(agent: AgentDouble, tmp_path: Path) -> None:
    agent.datasets["FI-x"] = {"id": "FI-x"}
    for name in ("no.vcf.gz", "no.tsv"):
        (tmp_path / name).write_text("")
    done = hansa_node(
        agent.state.path, *arguments(Dataset(tmp_path / "no.vcf.gz", tmp_path / "no.tsv")), "--output", "json"
    )
    assert json.loads(done.err)["error"]["reason"] == "DATASET_EXISTS"


def test_without_an_agent_the_vcf_is_not_even_read(tmp_path: Path, dataset: Dataset) -> None:
    state = create_state_folder(tmp_path / "state")
    store_policy(state.policy_file, Policy())
    done = hansa_node(state.path, *arguments(dataset))
    assert done.code == 3
    assert list(state.datasets.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_of_an_import_that_is_interrupted(
    agent: AgentDouble, dataset: Dataset, number: signal.Signals
) -> None:
    agent.let_in.clear()
    agent.refuse_datasets = True
    command = [sys.executable, "-c", "from node_agent.cli.main import main; main()"]
    with subprocess.Popen(
        [*command, "--state", str(agent.state.path), *arguments(dataset)], stderr=subprocess.PIPE, text=True
    ) as process:
        assert agent.arrived.wait(60)
        assert len(left_over(agent)) == 1
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "interrupted"
    assert left_over(agent) == []
