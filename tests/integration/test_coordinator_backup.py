"""A coordinator's backup is whole and true, and what is restored from it is the coordinator, one generation on."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from sqlalchemy.orm import Session

from coordinator.backups import Wanted, check, restore
from coordinator.bootstrap import open_foundation
from coordinator.cli.main import main
from coordinator.config import load_config
from coordinator.services.nodes import Act
from coordinator.services.trust import renew_timestamp, state_in_force
from coordinator.store.audit import AuditRepository
from coordinator.store.audit_check import verify_log
from coordinator.store.backup import facts_of
from coordinator.store.base import Base
from coordinator.store.database import Database
from coordinator.store.federation import read_federation
from coordinator.trust_keys import load_trust_keys
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.clock import utc_now
from hansa.runtime.drain import DrainFile
from tests.support.postgres import Postgres
from tests.support.stores import postgres
from tests.support.trust_repository import as_arguments, write_trust
from tests.support.trust_world import TrustWorld, build_trust_world

pytestmark = pytest.mark.slow
__all__ = ["postgres"]

PATIENCE = 60.0


@pytest.fixture(scope="module")
def trust() -> TrustWorld:
    return build_trust_world(now=utc_now())


def command(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def done(*words: object) -> Result:
    result = command(*words)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(params=["sqlite", "postgresql"])
def begun(request: pytest.FixtureRequest, tmp_path: Path, trust: TrustWorld) -> Path:
    """The state folder of a new coordinator, on either database."""
    options = dict(write_trust(trust, tmp_path / "given"))
    if request.param == "postgresql":
        options["--database"] = request.getfixturevalue("postgres").new_database()
    done("init", tmp_path / "coordinator", *as_arguments(options))
    return tmp_path / "coordinator"


def note(session: Session, subject: str) -> None:
    AuditRepository(session).append(at=utc_now(), actor="olga", action="node_invited", subject=subject, facts={})


def rows(session: Session) -> dict[str, list[tuple[Any, ...]]]:
    """Return all that the store holds."""
    tables = Base.metadata.sorted_tables
    return {table.name: sorted((tuple(row) for row in session.execute(sa.select(table))), key=repr) for table in tables}


def in_store(state: Path, work: Callable[[Session], Any]) -> Any:
    database = Database.open(load_config(state).database_url(state))
    try:
        return database.run_sync(work)
    finally:
        database.close()


def fresh(state: Path, server: Postgres) -> list[str]:
    """Return the options that name an empty database for what is restored."""
    return ["--database", server.new_database()] if load_config(state).database else []


def test_what_is_restored_is_the_coordinator_one_generation_on(
    begun: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    done("backup", begun, tmp_path / "backup")
    before = in_store(begun, rows)
    there = tmp_path / "elsewhere" / "coordinator"
    more = fresh(begun, request.getfixturevalue("postgres")) if load_config(begun).database else []
    done("restore", tmp_path / "backup", there, *more)

    foundation = open_foundation(there, utc_now)  # keys, settings and store are those that serving needs
    after = foundation.database.run_sync(rows)
    sound = foundation.database.run_sync(verify_log)
    foundation.database.close()
    name, uuid, generation, term = before["federation"][0]
    assert after["federation"] == [(name, uuid, after["federation"][0][2], term + 2)]  # restored, then served
    assert after["federation"][0][2] > generation
    changed = {"federation", "audit", "audit_leaves", "audit_nodes", "trust_state", "trust_metadata"}
    assert {table: found for table, found in after.items() if table not in changed} == {
        table: found for table, found in before.items() if table not in changed
    }
    assert (sound.first_wrong, sound.size) == (None, len(before["audit"]) + 1)
    assert any(row[3] == "store_restored" for row in after["audit"])


@pytest.mark.parametrize("begun", ["sqlite"], indirect=True)
def test_metadata_of_a_restored_coordinator_is_newer_than_any_that_was_given_out(begun: Path, tmp_path: Path) -> None:
    """Nodes remember the highest versions that they have seen, and take a lower one for a rollback."""
    online = load_trust_keys(begun).online
    done("backup", begun, tmp_path / "backup")
    seen, now = in_store(begun, state_in_force), utc_now()
    for number in range(20):
        seen = in_store(
            begun, partial(renew_timestamp, online=online, now=now + timedelta(seconds=number + 1), ahead=0)
        )
    restore(tmp_path / "backup", tmp_path / "new", Wanted(), Act("olga", now + timedelta(seconds=20)))
    found = in_store(tmp_path / "new", state_in_force)
    assert found.timestamp_version > seen.timestamp_version
    assert found.snapshot_version > seen.snapshot_version
    assert found.targets_version == seen.targets_version


def test_a_backup_of_one_database_can_be_restored_into_the_other(
    begun: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    done("backup", begun, tmp_path / "backup")
    before = in_store(begun, rows)
    server: Postgres = request.getfixturevalue("postgres")
    other = "" if load_config(begun).database else server.new_database()
    done("restore", tmp_path / "backup", tmp_path / "other", "--database", other)
    after = in_store(tmp_path / "other", rows)
    assert bool(load_config(tmp_path / "other").database) == bool(other)
    assert after["trust_targets"] == before["trust_targets"]
    assert after["persons"] == before["persons"]


@pytest.mark.parametrize("begun", ["sqlite"], indirect=True)
def test_restores_of_one_backup_have_growing_generations_though_the_stores_do_not_know_each_other(
    begun: Path, tmp_path: Path
) -> None:
    done("backup", begun, tmp_path / "backup")
    found = [in_store(begun, read_federation).generation]
    for number in range(3):
        done("restore", tmp_path / "backup", tmp_path / f"restored-{number}")
        found.append(in_store(tmp_path / f"restored-{number}", read_federation).generation)
    assert found == sorted(set(found))
    assert found[-1] - found[0] < 100  # a leap of a thousand would pass for a forgery
    done("restore", tmp_path / "backup", tmp_path / "above", "--above", 500)
    assert in_store(tmp_path / "above", read_federation).generation > 500


@pytest.mark.parametrize("begun", ["sqlite"], indirect=True)
def test_what_was_there_is_moved_aside_and_its_generation_is_passed(begun: Path, tmp_path: Path) -> None:
    done("backup", begun, tmp_path / "backup")

    def later(session: Session) -> None:
        session.execute(sa.text("UPDATE federation SET generation = 300"))

    in_store(begun, later)
    DrainFile(begun).set(utc_now())
    done("restore", tmp_path / "backup", begun)
    assert DrainFile(begun).is_set(), "who drains before a restore still drains after it"
    (old,) = begun.parent.glob("coordinator.before-*")
    assert (old / "coordinator.toml").exists()
    assert in_store(begun, read_federation).generation > 300


def test_a_database_that_is_not_empty_is_left_alone(
    tmp_path: Path, trust: TrustWorld, request: pytest.FixtureRequest
) -> None:
    server: Postgres = request.getfixturevalue("postgres")
    options = {**write_trust(trust, tmp_path / "given"), "--database": server.new_database()}
    done("init", tmp_path / "coordinator", *as_arguments(options))
    done("backup", tmp_path / "coordinator", tmp_path / "backup")
    before = in_store(tmp_path / "coordinator", rows)
    result = command("restore", tmp_path / "backup", tmp_path / "again")
    assert (result.exit_code, "STATE_FOLDER_INVALID" in result.output) == (1, True)
    assert not (tmp_path / "again").exists()
    assert in_store(tmp_path / "coordinator", rows) == before


def test_a_coordinator_that_serves_is_backed_up_and_not_restored_over(begun: Path, tmp_path: Path) -> None:
    foundation = open_foundation(begun, utc_now)
    try:
        done("backup", begun, tmp_path / "backup")
        result = command("restore", tmp_path / "backup", begun)
        assert (result.exit_code, "STORE_IN_USE" in result.output) == (1, True)
        with pytest.raises(HansaError) as refused:
            open_foundation(begun, utc_now)
        assert refused.value.reason is Reason.STORE_IN_USE
    finally:
        foundation.database.close()
    assert list(begun.parent.glob("*.part")) == []


@pytest.fixture
def writing(begun: Path) -> Iterator[tuple[Path, Callable[[], int]]]:
    """A store that is written to all the while, two rows at a time; and how often it was."""
    database = Database.open(load_config(begun).database_url(begun))
    stop, count = threading.Event(), [0]

    def write() -> None:
        while not stop.is_set():
            number = count[0]

            def pair(session: Session, number: int = number) -> None:
                note(session, f"first {number}")
                note(session, f"second {number}")

            database.run_sync(pair)
            count[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    yield begun, lambda: count[0]
    stop.set()
    writer.join(PATIENCE)
    database.close()


def test_a_backup_under_load_has_every_transaction_whole_or_not_at_all(
    writing: tuple[Path, Callable[[], int]], tmp_path: Path
) -> None:
    state, written = writing
    for number in range(3):
        least = written()
        done("backup", state, tmp_path / f"backup-{number}")
        manifest = check(tmp_path / f"backup-{number}")
        with_init = facts_of(tmp_path / f"backup-{number}" / "store.db").heads["log"]
        assert manifest.heads["log"] == with_init
        copy = tmp_path / f"copy-{number}.db"
        copy.write_bytes((tmp_path / f"backup-{number}" / "store.db").read_bytes())
        database = Database.open(f"sqlite:///{copy}")
        subjects = database.run_sync(lambda session: list(session.scalars(sa.text("SELECT subject FROM audit"))))
        sound = database.run_sync(verify_log)
        database.close()
        assert sound.first_wrong is None
        firsts = {one.split()[1] for one in subjects if one.startswith("first ")}
        seconds = {one.split()[1] for one in subjects if one.startswith("second ")}
        assert firsts == seconds
        assert len(firsts) >= least  # what was committed before the backup began is in it


def test_a_backup_is_closed_to_others_and_says_that_it_holds_keys(begun: Path, tmp_path: Path) -> None:
    result = done("backup", begun, tmp_path / "backup")
    assert "private keys" in result.output
    for path in (tmp_path / "backup", *(tmp_path / "backup").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    manifest = json.loads((tmp_path / "backup" / "manifest.json").read_text())
    assert (manifest["of"], manifest["keys"], manifest["generation"]) == ("coordinator", True, 1)
    assert {"ca/node-ca.key", "trust/log.key", "coordinator.toml", "store.db"} <= set(manifest["files"])


def test_without_keys_there_are_none_and_restoring_takes_them_from_elsewhere(begun: Path, tmp_path: Path) -> None:
    done("backup", begun, tmp_path / "backup", "--without-keys")
    assert list((tmp_path / "backup").rglob("*.key")) == []
    refused = command("restore", tmp_path / "backup", tmp_path / "again", "--database", "")
    assert (refused.exit_code, "--keys-from" in refused.output) == (1, True)
    done("restore", tmp_path / "backup", tmp_path / "again", "--database", "", "--keys-from", begun)
    open_foundation(tmp_path / "again", utc_now).database.close()


def a_byte_of_the_store(backup: Path) -> None:
    data = bytearray((backup / "store.db").read_bytes())
    data[len(data) // 2] ^= 1
    (backup / "store.db").write_bytes(data)


def a_key(backup: Path) -> None:
    (backup / "ca" / "node-ca.key").unlink()


def one_file_more(backup: Path) -> None:
    (backup / "trust" / "new.key").touch()


def the_settings(backup: Path) -> None:
    # As good as before to everything but the digest.
    path = backup / "coordinator.toml"
    path.write_text(path.read_text() + "# somebody was here\n")


def the_manifest(backup: Path) -> None:
    (backup / "manifest.json").write_text('{"format": 1}')


def the_generation(backup: Path) -> None:
    path = backup / "manifest.json"
    path.write_text(path.read_text().replace('"generation": 1', '"generation": 7'))


def a_link(backup: Path) -> None:
    (backup / "server-ca.pem").unlink()
    (backup / "server-ca.pem").symlink_to("/etc/hostname")


@pytest.mark.parametrize("begun", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "spoil", [a_byte_of_the_store, a_key, one_file_more, the_settings, the_manifest, the_generation, a_link]
)
def test_a_backup_that_was_changed_is_refused_and_nothing_is_touched(
    begun: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    done("backup", begun, tmp_path / "backup")
    done("restore", tmp_path / "backup", "--verify")
    spoil(tmp_path / "backup")
    before = in_store(begun, rows)
    for words in (("--verify",), (begun,)):
        result = command("restore", tmp_path / "backup", *words)
        assert (result.exit_code, "BACKUP_INVALID" in result.output) == (1, True), result.output
    assert in_store(begun, rows) == before
    assert list(begun.parent.glob("coordinator.before-*")) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
import hansa.runtime.backups as backups
from coordinator.cli.main import main
inner = getattr(backups.os, sys.argv[1]) if hasattr(backups.os, sys.argv[1]) else getattr(backups, sys.argv[1])
left = int(sys.argv[2])
def dying(*arguments, **named):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*arguments, **named)
setattr(backups.os if hasattr(backups.os, sys.argv[1]) else backups, sys.argv[1], dying)
main(sys.argv[3:])
"""


def killed(step: str, after: int, *words: object) -> int:
    """Run a command that is killed at the call number ``after`` of a step; return how it ended."""
    line = [sys.executable, "-c", _KILLED, step, str(after), *map(str, words)]
    return subprocess.run(line, capture_output=True, timeout=PATIENCE, check=False).returncode


@pytest.mark.parametrize("begun", ["sqlite"], indirect=True)
def test_who_is_killed_in_the_middle_leaves_the_old_or_the_new(begun: Path, tmp_path: Path) -> None:
    done("backup", begun, tmp_path / "backup")
    for step, after in (("fsync", 0), ("fsync", 9), ("_exchange", 0), ("sync_folder", 1)):
        assert killed(step, after, "backup", begun, tmp_path / "second") in (0, -signal.SIGKILL)
        if (tmp_path / "second").exists():
            check(tmp_path / "second")
            (tmp_path / "second").rename(tmp_path / f"kept-{step}-{after}")
        killed(step, after, "restore", tmp_path / "backup", begun)
        open_foundation(begun, utc_now).database.close()  # either is a coordinator
    done("backup", begun, tmp_path / "second")
    done("restore", tmp_path / "backup", begun)
    assert list(tmp_path.glob(".*.part")) == []  # what the killed ones left is swept by the next


@pytest.mark.parametrize("begun", ["sqlite"], indirect=True)
def test_a_store_with_a_damaged_page_is_refused_with_the_runbooks_name(begun: Path, tmp_path: Path) -> None:
    done("backup", begun, tmp_path / "backup")
    path = begun / "coordinator.db"
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 3 + 512] = bytes(range(256)) * 2
    path.write_bytes(data)
    result = command("serve", begun)
    assert (result.exit_code, "STORE_DAMAGED" in result.output, "store-damaged.md" in result.output) == (1, True, True)
    result = command("backup", begun, tmp_path / "worse")
    assert (result.exit_code, "STORE_DAMAGED" in result.output) == (1, True)
    assert not (tmp_path / "worse").exists()
    done("restore", tmp_path / "backup", begun)
    open_foundation(begun, utc_now).database.close()


def test_a_database_that_says_yes_before_its_log_is_on_the_disk_is_refused(request: pytest.FixtureRequest) -> None:
    server: Postgres = request.getfixturevalue("postgres")
    url = server.new_database()
    name = url.partition("/test_")[2].partition("?")[0]
    look = Database.look(url)
    look.run_sync(lambda session: session.execute(sa.text(f"ALTER DATABASE test_{name} SET synchronous_commit = off")))
    look.close()
    with pytest.raises(HansaError) as refused:
        Database.open(url)
    assert (refused.value.reason, "synchronous_commit" in refused.value.public) == (Reason.CONFIG_INVALID, True)


def test_what_was_filled_is_taken_back_where_the_folder_cannot_be_put_in_its_place(
    tmp_path: Path, trust: TrustWorld, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Postgres = request.getfixturevalue("postgres")
    done("init", tmp_path / "coordinator", *as_arguments(dict(write_trust(trust, tmp_path / "given"))))
    done("backup", tmp_path / "coordinator", tmp_path / "backup")
    url = server.new_database()

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as broken:
        broken.setattr("coordinator.backups.move_in", refuse)
        assert command("restore", tmp_path / "backup", tmp_path / "new", "--database", url).exit_code == 1
    assert not (tmp_path / "new").exists()
    done("restore", tmp_path / "backup", tmp_path / "new", "--database", url)
    open_foundation(tmp_path / "new", utc_now).database.close()


def test_a_coordinator_whose_store_another_one_serves_now_can_write_no_more(
    tmp_path: Path, trust: TrustWorld, request: pytest.FixtureRequest
) -> None:
    """The lock goes with its connection, which may end unnoticed; the term does not."""
    server: Postgres = request.getfixturevalue("postgres")
    options = {**write_trust(trust, tmp_path / "given"), "--database": server.new_database()}
    done("init", tmp_path / "coordinator", *as_arguments(options))
    first = open_foundation(tmp_path / "coordinator", utc_now).database
    first.run_sync(lambda session: note(session, "mine"))
    ended = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
    look = Database.look(options["--database"])
    look.run_sync(lambda session: session.execute(sa.text(ended)).all())
    look.close()
    second = open_foundation(tmp_path / "coordinator", utc_now).database
    try:
        with pytest.raises(HansaError) as fenced:
            first.run_sync(lambda session: note(session, "mine, too late"))
        assert fenced.value.reason is Reason.STORE_FENCED
        subjects = second.run_sync(lambda session: list(session.scalars(sa.text("SELECT subject FROM audit"))))
        assert "mine" in subjects
        assert "mine, too late" not in subjects
    finally:
        first.close()
        second.close()
