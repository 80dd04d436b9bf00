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
from coordinator.services.trust import pinned_root
from coordinator.store.database import Database
from coordinator.store.federation import read_federation
from coordinator.store.persons import PersonRepository
from hansa.contract.directory import Role
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.clock import utc_now
from tests.support.trust_repository import as_arguments, write_trust
from tests.support.trust_world import TrustWorld, build_trust_world

pytestmark = pytest.mark.slow

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
Init = Callable[..., Result]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "coordinator"


@pytest.fixture(scope="module")
def trust() -> TrustWorld:
    return build_trust_world(now=utc_now())


@pytest.fixture
def options(trust: TrustWorld, tmp_path: Path) -> dict[str, str]:
    return dict(write_trust(trust, tmp_path / "given"))


@pytest.fixture
def init(options: dict[str, str], state_dir: Path) -> Init:
    def run(*more: str, **changed: str) -> Result:
        given = {**options, **{f"--{name.replace('_', '-')}": value for name, value in changed.items()}}
        return CliRunner().invoke(main, ["init", str(state_dir), *as_arguments(given), *more])

    return run


def test_init_makes_all_that_serving_needs(init: Init, state_dir: Path, trust: TrustWorld) -> None:
    result = init("--people-port", "9001", "--enrolment-port", "9002", "--node-port", "9003")
    assert result.exit_code == 0, result.output
    assert "hansa-coordinator serve" in result.output
    foundation = open_foundation(state_dir, lambda: NOW)
    assert foundation.config.federation == "demo"
    assert (foundation.config.people_port, foundation.config.node_port) == (9001, 9003)
    ada = foundation.database.run_sync(lambda session: PersonRepository(session).get("ada"))
    assert ada is not None
    assert (ada.organisation, ada.roles) == ("uni-a", (Role.RESEARCHER,))
    assert foundation.database.run_sync(pinned_root) == trust.root
    assert (state_dir / "trust" / "root.json").read_bytes() == trust.root
    foundation.database.close()


def test_keys_are_readable_by_nobody_else(init: Init, state_dir: Path) -> None:
    init()
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    keys = list((state_dir / "ca").glob("*.key"))
    assert {key.name for key in keys} == {"server-ca.key", "node-ca.key", "server.key", "invitations.key"}
    signing = list((state_dir / "trust").glob("*.key"))
    assert {key.name for key in signing} == {"snapshot.key", "timestamp.key", "log.key"}
    private = [*keys, *signing, state_dir / "coordinator.toml"]
    assert {stat.S_IMODE(key.stat().st_mode) for key in private} == {0o600}
    assert {stat.S_IMODE((state_dir / name).stat().st_mode) for name in ("ca", "trust")} == {0o700}


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


def test_wrong_keys_or_names_leave_nothing_behind(init: Init, options: dict[str, str], tmp_path: Path) -> None:
    wrong = {
        "KEY_INVALID": [
            {"snapshot_key": options["--timestamp-key"]},
            {"log_key": options["--snapshot-key"]},
            {"log_key": str(Path(__file__))},
        ],
        "CONFIG_INVALID": [{"federation": "Demo!"}],
        "TRUST_INVALID": [{"federation": "other"}],
        "TRUST_UNKNOWN": [{"trust": str(tmp_path)}],
    }
    for reason, cases in wrong.items():
        for changed in cases:
            result = init(**changed)
            assert (result.exit_code, reason in result.output) == (1, True), result.output
            assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_a_repository_that_does_not_verify_leaves_nothing_behind(
    init: Init, options: dict[str, str], tmp_path: Path
) -> None:
    targets = Path(options["--trust"], "metadata", "1.targets.json")
    targets.write_bytes(targets.read_bytes().replace(b'"demo"', b'"evil"').replace(b'"version": 1', b'"version": 2'))
    for path in Path(options["--trust"], "metadata").glob("*snapshot*"):
        path.unlink()
    result = init()
    assert (result.exit_code, "TRUST_" in result.output) == (1, True), result.output
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_the_newest_root_is_pinned(init: Init, state_dir: Path, tmp_path: Path) -> None:
    trust = build_trust_world(now=utc_now())
    second = trust.publish_root(trust.plan(), ("root1", "root2"))
    trust.renew(trust.now)
    given = write_trust(trust, tmp_path / "second")
    names = {name.removeprefix("--").replace("-", "_"): value for name, value in given.items()}
    result = init(**names)
    assert result.exit_code == 0, result.output
    assert (state_dir / "trust" / "root.json").read_bytes() == second


def test_a_database_that_cannot_be_reached_leaves_nothing_behind(init: Init, tmp_path: Path) -> None:
    result = init("--database", f"postgresql+psycopg://u:pa55word@/x?host={tmp_path}")
    assert result.exit_code == 1
    assert "CONFIG_INVALID" in result.output
    assert "pa55word" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_a_database_that_has_a_federation_is_refused(init: Init, tmp_path: Path, state_dir: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    assert init("--database", url).exit_code == 0
    state_dir.rename(tmp_path / "first")
    result = init("--database", url)
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
        "trust_root": str(state_dir / "trust" / "root.json"),
        "person": "olga",
        "key_file": str(key),
    }
    handout = tmp_path / "handout"
    written = CliRunner().invoke(main, ["profile", str(state_dir), "--write", str(handout)])
    assert written.exit_code == 0
    assert (handout / "server-ca.pem").read_bytes() == (state_dir / "server-ca.pem").read_bytes()
    assert (handout / "root.json").read_bytes() == (state_dir / "trust" / "root.json").read_bytes()
    profile = tomllib.loads((handout / "people.toml").read_text())
    assert (profile["ca_file"], profile["trust_root"]) == (str(handout / "server-ca.pem"), str(handout / "root.json"))


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
