"""The executor plugin beside the ordinary Snakemake of the same environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_the_plugin_leaves_the_snakemake_command_usable() -> None:
    command = [str(Path(sys.executable).with_name("snakemake")), "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "--hansa-channel-fd" in run.stdout
