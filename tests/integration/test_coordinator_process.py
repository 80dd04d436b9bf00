"""The command ``hansa-coordinator serve`` as a process of its own."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coordinator.config import make_config
from coordinator.founding import Founding, found
from hansa.runtime.clock import utc_now
from tests.support.job_world import job_trust
from tests.support.live_coordinator import free_ports, trust_keys

PATIENCE_SECONDS = 60.0


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    people, enrolment, node = free_ports(3)
    config = make_config(federation="demo", people_port=people, enrolment_port=enrolment, node_port=node)
    place = tmp_path / "state"
    now = utc_now()
    trust = job_trust(now)
    found(Founding(place, config, trust.files, trust_keys(trust)), store_uuid="u" * 36, now=now)
    return place


@contextmanager
def served(state_dir: Path) -> Iterator[subprocess.Popen[str]]:
    command = [str(Path(sys.executable).with_name("hansa-coordinator")), "serve", str(state_dir)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_listener(process: subprocess.Popen[str]) -> list[str]:
    """Read the log until all three listeners are there."""
    assert process.stderr is not None
    lines: list[str] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while sum('"listening"' in line for line in lines) < 3:
        assert time.monotonic() < deadline
        line = process.stderr.readline()
        assert line, f"it ended: {lines}"
        lines.append(line)
    return lines


@pytest.mark.slow
def test_serve_ends_cleanly_when_it_is_told_to_and_logs_json(state_dir: Path) -> None:
    with served(state_dir) as process:
        lines = wait_for_listener(process)
        addresses = [json.loads(line).get("address") for line in lines if '"listening"' in line]
        for address in addresses:
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS).close()
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0
        for line in [*lines, *rest.splitlines()]:
            json.loads(line)


@pytest.mark.slow
def test_a_second_server_of_the_same_store_or_of_the_same_ports_is_refused(state_dir: Path) -> None:
    # Another store, begun with the same settings.
    other = state_dir.with_name("other")
    shutil.copytree(state_dir, other)
    with served(state_dir) as first:
        wait_for_listener(first)
        for place, reason in ((state_dir, "STORE_IN_USE"), (other, "CONFIG_INVALID")):
            with served(place) as second:
                _, errors = second.communicate(timeout=PATIENCE_SECONDS)
                assert second.returncode == 1
                assert reason in errors
        assert first.poll() is None
