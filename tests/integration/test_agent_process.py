"""The command ``hansa-node run`` as a process of its own, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from deploy.local.processes import wait_until
from hansa.contract.errors import HansaError
from hansa.runtime.stopping import CUT_SHORT
from node_agent.config import StateFolder, create_state_folder, short_path
from node_agent.execution.broker import EmbeddedBroker
from node_agent.keys.enrolment import enrol
from node_agent.local_api.client import AgentClient
from node_agent.policy.file import store_policy
from node_agent.policy.policy import Policy
from tests.support.enrolment_double import EnrolmentDouble, enrolment_listener

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 90.0


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    """The state folder of a node that has enrolled; its coordinator is away."""
    made = create_state_folder(tmp_path / "state")
    store_policy(made.policy_file, Policy())
    with enrolment_listener(EnrolmentDouble()) as invitation:
        enrol(invitation.token(), made)
    return made


@contextmanager
def agent(state: StateFolder, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the agent until the context ends, and its broker no longer."""
    program = "from node_agent.cli.main import main; main()"
    with log.open("wb") as sink:
        command = [sys.executable, "-c", program, "--state", str(state.path), "run"]
        process = subprocess.Popen(command, stderr=sink, stdin=subprocess.DEVNULL)
        try:
            assert wait_until(lambda: answers(state), PATIENCE_SECONDS, 0.1), log.read_text()
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            # Who is killed leaves it to its heir.
            EmbeddedBroker(state.broker).shut_down()


def answers(state: StateFolder) -> bool:
    try:
        return bool(AgentClient(state).status())
    except HansaError:
        return False


def last_event(log: Path) -> str:
    return str(json.loads(log.read_text().splitlines()[-1])["event"])


def test_an_agent_that_is_told_to_stop_ends_well_and_takes_its_broker_along(state: StateFolder, tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    with agent(state, log) as process:
        assert not AgentClient(state).status()["draining"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
        assert last_event(log) == "agent_stopped"
        assert not (state.broker / "redis.pid").exists()


def test_a_store_that_is_stuck_does_not_keep_the_agent_past_its_deadline(state: StateFolder, tmp_path: Path) -> None:
    settings = state.config_file.read_text()
    state.config_file.write_text(re.sub(r"(?m)^stop_seconds = \d+$", "stop_seconds = 1", settings))
    log = tmp_path / "agent.log"
    with agent(state, log) as process, closing(sqlite3.connect(state.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with asking_for_what_the_store_knows(state):
            # Behind that question, and answered without the store.
            for _ in range(3):
                AgentClient(state).policy()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_SECONDS) == CUT_SHORT
        assert last_event(log) == "stop_deadline_passed"


@contextmanager
def asking_for_what_the_store_knows(state: StateFolder) -> Iterator[None]:
    """Ask the agent for its status, and do not wait for the answer."""
    with short_path(state.socket) as name, socket.socket(socket.AF_UNIX) as call:
        call.connect(name)
        call.sendall(b"GET /v1/status HTTP/1.1\r\nHost: agent\r\n\r\n")
        yield
