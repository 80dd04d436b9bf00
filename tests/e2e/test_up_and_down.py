"""`make up` and `make down`: what they start, keep, refuse and stop."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.layout import REPOSITORY
from deploy.local.processes import marked
from tests.support.local_federation import Federation

pytestmark = pytest.mark.slow


def _up(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.local.federation", "up", "--dir", str(root), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=REPOSITORY)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, demo_data: Path) -> Iterator[Federation]:
    """A federation of one node, SE, with two datasets of its own, in a folder that held a file before."""
    folder = tmp_path_factory.mktemp("small")
    data = folder / "data" / "SE"
    data.mkdir(parents=True)
    shutil.copy(demo_data / "FI" / "samples.tsv", data / "samples.tsv")
    for name in ("one", "two"):
        for suffix in (".vcf.gz", ".vcf.gz.tbi"):
            shutil.copy(demo_data / "FI" / f"aisnp{suffix}", data / f"{name}{suffix}")
    root = folder / "a folder"
    root.mkdir()
    (root / "notes.txt").write_text("mine")
    found = Federation.start(root, "SE", folder / "data")
    yield found
    found.stop()


def test_a_federation_keeps_its_state_over_a_stop_and_touches_nothing_else(small: Federation) -> None:
    root = small.layout.root
    offered = small.hansa("datasets", "list").document["datasets"]
    assert [item["dataset"] for item in offered] == ["SE-one", "SE-two"]
    job = small.submit("--dataset", "SE-two", "--param", "variants=rs12913832")
    assert small.hansa("job", "watch", job).code == 0

    again = _up(root)
    assert again.returncode == 1
    assert "make down" in again.stderr

    small.stop()
    assert marked(root) == []
    assert (root / "notes.txt").read_text() == "mine"
    assert _up(root, "--nodes", "NO").returncode == 1

    assert _up(root).returncode == 0
    assert small.job(job)["state"] == "COMPLETED"
    assert small.connected() == {"SE"}


def test_the_env_file_makes_hansa_ready(small: Federation) -> None:
    script = f". '{small.layout.env}' && hansa nodes list --output json"
    done = subprocess.run(
        ["sh", "-c", script], check=False, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "HOME": "/"}
    )
    assert done.returncode == 0, done.stderr
    assert '"SE"' in done.stdout


def test_a_folder_with_another_coordinator_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "coordinator").mkdir()
    (tmp_path / "coordinator" / "precious").write_text("keep")
    refused = _up(tmp_path, "--nodes", "FI")
    assert refused.returncode == 1
    assert "in the way" in refused.stderr
    assert (tmp_path / "coordinator" / "precious").read_text() == "keep"


def test_data_that_cannot_be_used_ends_in_one_error_with_nothing_running(tmp_path: Path, demo_data: Path) -> None:
    folder = tmp_path / "data" / "SE"
    folder.mkdir(parents=True)
    shutil.copy(demo_data / "FI" / "samples.tsv", folder)
    (folder / "bad.vcf.gz").write_bytes((demo_data / "FI" / "aisnp.vcf.gz").read_bytes()[:-100])
    root = tmp_path / "hansa"
    refused = _up(root, "--nodes", "SE", "--data", str(tmp_path / "data"))
    assert refused.returncode == 1
    assert "VCF_TRUNCATED" in refused.stderr
    assert marked(root) == []
    assert not (root / "nodes").exists()
