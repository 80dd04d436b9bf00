"""Starting, finding and stopping daemons: only what is ours is ever signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.processes import MARK, Daemon, marked, stop, sweep, wait_until

# A daemon that leaves an orphan behind when it is killed, and says when it is ready.
_SCRIPT = """
import pathlib, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    ready = tmp_path / "ready"
    command = (sys.executable, "-c", _SCRIPT, str(ready))
    found = Daemon(command, tmp_path / "daemon.pid", tmp_path / "daemon.log")
    found.start(tmp_path, os.environ)
    assert wait_until(ready.exists, 30), found.log_tail()
    yield found
    sweep(tmp_path)


def test_a_started_daemon_is_found_by_its_pid_file(daemon: Daemon) -> None:
    process = daemon.running()
    assert process is not None
    assert daemon.pid_file.read_text() == f"{process.pid}\n"


def test_a_stopped_daemon_is_gone_and_its_orphans_are_swept(daemon: Daemon, tmp_path: Path) -> None:
    assert len(marked(tmp_path)) == 2
    stop([daemon])
    assert daemon.running() is None
    assert sweep(tmp_path) == 1
    assert marked(tmp_path) == []


def test_a_killed_daemon_counts_as_stopped(daemon: Daemon) -> None:
    process = daemon.running()
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: daemon.running() is None, 30)


def test_a_process_that_took_over_the_pid_is_left_alone(daemon: Daemon, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as stranger:
        daemon.pid_file.write_text(f"{stranger.pid}\n")
        stop([daemon])
        sweep(tmp_path)
        assert stranger.poll() is None
        stranger.kill()


def test_another_federation_is_left_alone(daemon: Daemon, tmp_path: Path) -> None:
    env = {**os.environ, MARK: f"{tmp_path}-other"}
    with subprocess.Popen(["sleep", "600"], env=env) as stranger:
        sweep(tmp_path)
        assert stranger.poll() is None
        stranger.kill()
    assert daemon.running() is None
