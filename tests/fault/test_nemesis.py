"""Forty faults on real processes, from a seed that is printed, and every promise checked.

`make nemesis` does the same for longer; docs/reliability.md tells what it does
and how to repeat a run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.layout import REPOSITORY
from tests.support.nemesis_check import CHECKS
from tests.support.nemesis_world import may_have_namespaces

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

_FAULTS = 40
_LONGEST_SECONDS = 10
_LIFETIME_SECONDS = 420


def test_forty_faults_break_no_promise(tmp_path: Path) -> None:
    if not may_have_namespaces():
        pytest.skip("network namespaces need root")
    arguments = ["--faults", _FAULTS, "--round", _FAULTS, "--longest", _LONGEST_SECONDS]
    arguments += ["--lifetime", _LIFETIME_SECONDS, "--reports", tmp_path]
    command = [sys.executable, "-m", "tests.fault.nemesis", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=REPOSITORY)
    # The seed stands in the first line.
    sys.stdout.write(done.stdout[:200])
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    (found,) = tmp_path.glob("*.json")
    report = json.loads(found.read_text())
    assert report["faults_in_all"] == _FAULTS
    assert report["verdicts"] == {name: [] for name in CHECKS}
    # It was a fight: work was done meanwhile, and processes really died.
    assert report["jobs"].get("COMPLETED", 0) > 1
    assert any(kind.startswith("kill") for kind in report["faults"])
