"""How a coordinator begins, and what its settings may be."""

from __future__ import annotations

import stat
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from cryptography import x509

from coordinator.bootstrap import open_foundation
from coordinator.ca.files import create_keys, load_keys
from coordinator.cli.main import main
from coordinator.config import load_config, make_config
from coordinator.store.database import Database
from coordinator.store.federation import read_federation
from coordinator.store.persons import PersonRepository
from hansa.contract.errors import HansaError, Reason
from tests.support.people import public_pem

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
Init = Callable[..., Result]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "coordinator"


@pytest.fixture
def init(tmp_path: Path, state_dir: Path) -> Init:
    key = tmp_path / "olga.pub"
    key.write_text(public_pem())

    def run(*more: str, operator: str = "olga", federation: str = "demo", key: Path = key) -> Result:
        given = ["init", str(state_dir), "--federation", federation, "--operator", operator, "--operator-key", str(key)]
        return CliRunner().invoke(main, [*given, *more])

    return run


def test_init_makes_all_that_serving_needs(init: Init, state_dir: Path) -> None:
    result = init("--people-port", "9001", "--enrolment-port", "9002", "--node-port", "9003")
    assert result.exit_code == 0, result.output
    assert "hansa-coordinator serve" in result.output
    foundation = open_foundation(state_dir, lambda: NOW)
    assert foundation.config.federation == "demo"
    assert (foundation.config.people_port, foundation.config.node_port) == (9001, 9003)
    olga = foundation.database.run_sync(lambda session: PersonRepository(session).get("olga"))
    assert olga is not None
    assert olga.role == "operator"
    foundation.database.close()


def test_keys_are_readable_by_nobody_else(init: Init, state_dir: Path) -> None:
    init()
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    keys = list((state_dir / "ca").glob("*.key"))
    assert {key.name for key in keys} == {"server-ca.key", "node-ca.key", "server.key", "invitations.key"}
    assert {stat.S_IMODE(key.stat().st_mode) for key in [*keys, state_dir / "coordinator.toml"]} == {0o600}


def test_a_second_init_is_refused_and_changes_nothing(init: Init, state_dir: Path) -> None:
    init()
    before = {path: path.read_bytes() for path in state_dir.rglob("*") if path.is_file()}
    result = init()
    assert result.exit_code == 1
    assert "STATE_FOLDER_INVALID" in result.output
    assert {path: path.read_bytes() for path in state_dir.rglob("*") if path.is_file()} == before


def test_a_folder_in_use_is_left_alone(init: Init, state_dir: Path) -> None:
    state_dir.mkdir()
    (state_dir / "letter").write_text("mine")
    assert init().exit_code == 1
    assert [path.name for path in state_dir.iterdir()] == ["letter"]


def test_an_empty_folder_will_do(init: Init, state_dir: Path) -> None:
    state_dir.mkdir()
    assert init().exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"operator": "Olga"}, "PERSON_INVALID"),
        ({"federation": "Demo!"}, "CONFIG_INVALID"),
        ({"key": Path(__file__)}, "KEY_INVALID"),
    ],
)
def test_wrong_input_leaves_nothing_behind(
    init: Init, state_dir: Path, tmp_path: Path, arguments: dict[str, object], reason: str
) -> None:
    result = init(**arguments)
    assert result.exit_code == 1
    assert reason in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["olga.pub"]


def test_a_database_that_cannot_be_reached_leaves_nothing_behind(init: Init, tmp_path: Path) -> None:
    result = init("--database", f"postgresql+psycopg://u:pa55word@/x?host={tmp_path}")
    assert result.exit_code == 1
    assert "CONFIG_INVALID" in result.output
    assert "pa55word" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["olga.pub"]


def test_a_database_that_has_a_federation_is_refused(init: Init, tmp_path: Path, state_dir: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    assert init("--database", url).exit_code == 0
    state_dir.rename(tmp_path / "first")
    result = init("--database", url, federation="second")
    assert result.exit_code == 1
    assert "holds the federation demo already" in result.output
    assert not state_dir.exists()


def test_equal_ports_are_refused(init: Init, state_dir: Path) -> None:
    result = init("--people-port", "9001", "--node-port", "9001")
    assert result.exit_code == 1
    assert "must differ" in result.output
    assert not state_dir.exists()


def test_a_profile_tells_a_client_where_and_whom_to_trust(init: Init, state_dir: Path, tmp_path: Path) -> None:
    init("--people-port", "9001")
    key = tmp_path / "olga.key"
    printed = CliRunner().invoke(main, ["profile", str(state_dir), "--person", "olga", "--key", str(key)])
    assert tomllib.loads(printed.output) == {
        "federation": "demo",
        "endpoint": "127.0.0.1:9001",
        "ca_file": str(state_dir / "server-ca.pem"),
        "person": "olga",
        "key_file": str(key),
    }
    handout = tmp_path / "handout"
    written = CliRunner().invoke(main, ["profile", str(state_dir), "--write", str(handout)])
    assert written.exit_code == 0
    assert (handout / "server-ca.pem").read_bytes() == (state_dir / "server-ca.pem").read_bytes()
    assert tomllib.loads((handout / "people.toml").read_text())["ca_file"] == str(handout / "server-ca.pem")


def test_a_store_of_another_release_is_not_served_and_the_remedy_is_told(init: Init, state_dir: Path) -> None:
    init()
    database = Database.open(load_config(state_dir).database_url(state_dir))
    database.run_sync(lambda session: session.execute(sa.text("DELETE FROM alembic_version")))
    database.close()
    with pytest.raises(HansaError) as caught:
        open_foundation(state_dir, lambda: NOW)
    assert f"hansa-coordinator migrate {state_dir}" in caught.value.public


def test_migrate_leaves_a_current_store_as_it_is(init: Init, state_dir: Path) -> None:
    init()
    assert CliRunner().invoke(main, ["migrate", str(state_dir)]).exit_code == 0
    foundation = open_foundation(state_dir, lambda: NOW)
    federation = foundation.database.run_sync(read_federation)
    assert federation is not None
    assert (federation.name, federation.generation) == ("demo", 1)
    foundation.database.close()


def test_a_folder_without_a_coordinator_is_told_so(tmp_path: Path) -> None:
    for command in ("serve", "migrate", "profile"):
        with pytest.raises(HansaError) as caught:
            load_config(tmp_path)
        assert caught.value.reason is Reason.STATE_FOLDER_INVALID, command


def test_settings_that_nobody_knows_are_refused(init: Init, state_dir: Path) -> None:
    init()
    with (state_dir / "coordinator.toml").open("a") as file:
        file.write("insecure = true\n")
    with pytest.raises(HansaError) as caught:
        load_config(state_dir)
    assert caught.value.field == "insecure"


def test_settings_come_back_as_they_were_written(tmp_path: Path) -> None:
    config = make_config(
        federation="demo", host="hansa.example", listen="::", names=("a.example", "10.0.0.1"), database='x"\\y'
    )
    (tmp_path / "coordinator.toml").write_text(config.to_toml())
    assert load_config(tmp_path) == config
    assert config.address(1) == "[::]:1"


def test_the_servers_certificate_has_all_names_and_is_renewed_in_time(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    create_keys(folder, "demo", names=("localhost", "127.0.0.1"), now=NOW)

    def certificate(now: datetime, names: tuple[str, ...] = ("localhost", "127.0.0.1")) -> x509.Certificate:
        return x509.load_pem_x509_certificate(load_keys(folder, names=names, now=now).server_chain_pem)

    first = certificate(NOW)
    names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["localhost", "127.0.0.1"]
    assert certificate(NOW + timedelta(days=100)) == first
    assert certificate(NOW + timedelta(days=200)) != first
    assert certificate(NOW, ("localhost", "127.0.0.1", "hansa.example")) != first


def test_damaged_keys_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    create_keys(folder, "demo", names=("localhost",), now=NOW)
    (folder / "node-ca.key").write_bytes((folder / "server-ca.key").read_bytes())
    with pytest.raises(HansaError) as caught:
        load_keys(folder, names=("localhost",), now=NOW)
    assert caught.value.reason is Reason.STATE_FOLDER_INVALID
