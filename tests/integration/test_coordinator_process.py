"""The command ``hansa-coordinator serve`` as a process of its own."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.config import SERVER_CA_FILE, load_config, make_config
from coordinator.founding import Founding, found
from hansa.contract.limits import CSR_BYTES
from hansa.runtime.clock import utc_now
from hansa.runtime.stopping import CUT_SHORT
from tests.support.job_world import job_trust
from tests.support.live_coordinator import free_ports, trust_keys

PATIENCE_SECONDS = 60.0
ENROL = "/hansa.v1.EnrolmentService/Enrol"


def begun(place: Path, **settings: int) -> Path:
    people, enrolment, node = free_ports(3)
    config = make_config(federation="demo", people_port=people, enrolment_port=enrolment, node_port=node, **settings)
    now = utc_now()
    trust = job_trust(now)
    found(Founding(place, config, trust.files, trust_keys(trust)), store_uuid="u" * 36, now=now)
    return place


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return begun(tmp_path / "state")


@contextmanager
def strangers_channel(state_dir: Path) -> Iterator[Any]:
    """A connection to the listener that takes calls of strangers."""
    credentials = grpc.ssl_channel_credentials((state_dir / SERVER_CA_FILE).read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{load_config(state_dir).enrolment_port}", credentials) as channel:
        yield channel


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


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Return the exit status and the events that the log ended with."""
    _, rest = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, [json.loads(line)["event"] for line in rest.splitlines()]


@pytest.mark.slow
def test_a_call_without_an_end_does_not_keep_the_process(tmp_path: Path) -> None:
    state_dir = begun(tmp_path / "state", stop_seconds=6)
    never = threading.Event()

    def no_message() -> Iterator[bytes]:
        never.wait()
        yield b""

    with served(state_dir) as process, strangers_channel(state_dir) as channel:
        wait_for_listener(process)
        open_call = channel.stream_unary(ENROL).future(no_message())
        try:
            # Behind it on the same connection: the server has both.
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(ENROL)(b"", timeout=PATIENCE_SECONDS)
            process.send_signal(signal.SIGTERM)
            code, events = ended(process)
        finally:
            never.set()
            open_call.cancel()
    assert code == 0
    assert events[-1] == "stopped"


@pytest.mark.slow
def test_a_store_that_is_stuck_does_not_keep_the_process_past_its_deadline(tmp_path: Path) -> None:
    state_dir = begun(tmp_path / "state", stop_seconds=1)
    with served(state_dir) as process, strangers_channel(state_dir) as channel:
        wait_for_listener(process)
        # Somebody else has the file, as a backup on a slow disk may.
        with closing(sqlite3.connect(state_dir / "coordinator.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            stuck = channel.unary_unary(ENROL).future(b"")
            # Behind it, and refused before the store is asked: the server has both.
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(ENROL)(bytes(CSR_BYTES * 2), timeout=PATIENCE_SECONDS)
            process.send_signal(signal.SIGTERM)
            code, events = ended(process)
            stuck.cancel()
    assert code == CUT_SHORT
    assert events[-1] == "stop_deadline_passed"
