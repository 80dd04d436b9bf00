from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId
from node_agent.config import (
    AgentConfig,
    StateFolder,
    config_text,
    create_state_folder,
    load_config,
    load_settings,
    lock_state_folder,
    open_state_folder,
    short_path,
)
from node_agent.durable import write_durably

CONFIG = 'federation = "demo.example"\nnode = "FI"\nnode_endpoint = "127.0.0.1:7002"\n'


def reason_of(error: pytest.ExceptionInfo[HansaError]) -> Reason:
    return error.value.reason


def test_a_state_folder_is_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = create_state_folder(tmp_path / "deep" / "state")
    finally:
        os.umask(before)
    for path in (state.path, state.keys, state.datasets, state.runs, state.broker, state.logs):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_making_a_state_folder_again_changes_nothing(tmp_path: Path) -> None:
    state = create_state_folder(tmp_path / "state")
    (state.keys / "credential.pem").write_text("kept")
    assert create_state_folder(tmp_path / "state") == state
    assert (state.keys / "credential.pem").read_text() == "kept"


def test_an_empty_folder_of_ours_is_closed_before_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    assert stat.S_IMODE(create_state_folder(tmp_path / "state").path.stat().st_mode) == 0o700


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    state = create_state_folder(tmp_path / "state")
    state.path.chmod(0o750)
    for use in (create_state_folder, open_state_folder):
        with pytest.raises(HansaError) as refused:
            use(state.path)
        assert reason_of(refused) is Reason.STATE_FOLDER_INVALID
        assert "chmod 700" in refused.value.public


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(HansaError) as refused:
            open_state_folder(path)
        assert reason_of(refused) is Reason.STATE_FOLDER_INVALID
    with pytest.raises(HansaError) as refused:
        create_state_folder(tmp_path / "file" / "below")
    assert reason_of(refused) is Reason.STATE_FOLDER_INVALID


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    state = create_state_folder(tmp_path / "state")
    os.chown(state.path, 65534, 65534)
    with pytest.raises(HansaError) as refused:
        open_state_folder(state.path)
    assert reason_of(refused) is Reason.STATE_FOLDER_INVALID


def test_a_second_agent_with_the_same_state_folder_is_refused(tmp_path: Path) -> None:
    state = create_state_folder(tmp_path / "state")
    with lock_state_folder(state):
        with pytest.raises(HansaError) as refused:
            lock_state_folder(state)
        assert reason_of(refused) is Reason.AGENT_RUNNING
    lock_state_folder(state).release()


def test_a_killed_agents_lock_is_free_again(tmp_path: Path) -> None:
    state = create_state_folder(tmp_path / "state")
    program = (
        "import sys, time; from pathlib import Path; from node_agent.config import *\n"
        "lock = lock_state_folder(StateFolder(Path(sys.argv[1]))); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(state.path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(HansaError):
            lock_state_folder(state)
        holder.kill()
        holder.wait()
    lock_state_folder(state).release()


def test_a_socket_can_be_reached_however_deep_the_state_folder_lies(tmp_path: Path) -> None:
    state = create_state_folder(tmp_path / ("deep" * 20) / ("deeper" * 20))
    assert len(str(state.socket)) > 107
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as caller,
        short_path(state.socket) as name,
    ):
        listener.bind(name)
        listener.listen()
        caller.connect(name)
        assert state.socket.is_socket()


def test_settings_and_enrolment_make_one_file(tmp_path: Path) -> None:
    state = create_state_folder(tmp_path / "state")
    config = AgentConfig(
        federation="demo.example",
        node=NodeId("FI"),
        node_endpoint="[::1]:7002",
        slots=3,
        broker_url="amqp://localhost",
    )
    state.config_file.write_text(config_text(config))
    assert load_config(state) == config
    assert load_settings(state).slots == 3


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "federation"),
        ("slots = 2", "federation"),
        (CONFIG + "slot = 2", "slot"),
        (CONFIG + "slots = 0", "slots"),
        (CONFIG + "slots = true", "slots"),
        (CONFIG + "slots = '2'", "slots"),
        (CONFIG + "broker_url = 'filesystem://'", "broker_url"),
        (CONFIG + "broker_url = 5", "broker_url"),
        # Analyses come from the trust repository alone.
        (CONFIG + "analyses_dir = 'mine'", "analyses_dir"),
        (CONFIG.replace("FI", "fi"), "node"),
        (CONFIG.replace(":7002", ""), "node_endpoint"),
        (CONFIG.replace("demo.example", "Demo/x"), "federation"),
        (CONFIG + "federation = 'twice'", ""),
        ("\x00", ""),
    ],
)
def test_a_configuration_that_is_not_exactly_one_is_refused(tmp_path: Path, text: str, field: str) -> None:
    state = create_state_folder(tmp_path / "state")
    state.config_file.write_text(text)
    with pytest.raises(HansaError) as refused:
        load_config(state)
    assert (reason_of(refused), refused.value.field) == (Reason.CONFIG_INVALID, field)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "file"
    write_durably(place, b"old", mode=0o600)
    write_durably(place, b"new", mode=0o600)
    assert place.read_bytes() == b"new"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_durably(tmp_path / "folder", b"no file can replace a folder")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_a_fresh_folder_is_not_initialised(tmp_path: Path) -> None:
    assert not StateFolder(tmp_path).is_initialised
