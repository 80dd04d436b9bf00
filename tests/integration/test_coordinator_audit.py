"""The tree over the coordinator's audit table, on SQLite and on PostgreSQL."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from click.testing import CliRunner
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from coordinator.cli.main import main
from coordinator.services.erasure import erase_words
from coordinator.services.nodes import Act, Invite, invite_node
from coordinator.store.audit import AuditRepository
from coordinator.store.audit_check import LogState, _entries, _is_sound, verify_log
from coordinator.store.database import Database
from coordinator.store.schema import _config, migrate
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId
from hansa.contract.merkle import leaf_hash
from hansa.runtime.clock import utc_now
from tests.support.stores import empty_store_url, postgres, store
from tests.support.trust_repository import as_arguments, write_trust
from tests.support.trust_world import build_trust_world

__all__ = ["empty_store_url", "postgres", "store"]

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def fill(database: Database, count: int) -> None:
    def work(session: Session) -> None:
        for number in range(count):
            AuditRepository(session).append(at=NOW, actor="olga", action="node_invited", subject=f"N{number}")

    database.run_sync(work)


@pytest.mark.parametrize("size", [0, 1, 2, 7, 8, 13])
def test_an_untouched_audit_table_of_any_size_verifies(store: Database, size: int) -> None:
    fill(store, size)
    found = store.run_sync(verify_log)
    assert (found.size, found.first_wrong) == (size, None)


@pytest.mark.parametrize(
    ("statement", "first"),
    [
        ("UPDATE audit SET subject = 'N99' WHERE \"index\" = 5", 5),
        ("UPDATE audit SET actor = 'eve' WHERE \"index\" = 5", 5),
        ("UPDATE audit SET action = 'node_revoked' WHERE \"index\" = 5", 5),
        ('DELETE FROM audit WHERE "index" = 5', 5),
        ('DELETE FROM audit WHERE "index" = 13', 13),
        ('DELETE FROM audit_leaves WHERE "index" = 13', 13),
        ('UPDATE audit_nodes SET hash = leaf_hash FROM audit_leaves WHERE level = 3 AND audit_leaves."index" = 1', 8),
        ('DELETE FROM audit_nodes WHERE level = 2 AND "index" = 1', 8),
    ],
)
def test_a_change_of_the_audit_table_is_found_at_its_first_wrong_entry(
    store: Database, statement: str, first: int
) -> None:
    fill(store, 13)
    store.run_sync(lambda session: session.execute(sa.text(statement)))
    assert store.run_sync(verify_log).first_wrong == first


def test_an_entry_that_is_no_entry_any_more_is_found(store: Database) -> None:
    fill(store, 3)
    body = b"[]"
    values = {"body": body, "hash": leaf_hash(body)}
    statement = sa.text('UPDATE audit_leaves SET body = :body, leaf_hash = :hash WHERE "index" = 2')
    store.run_sync(lambda session: session.execute(statement, values))
    assert store.run_sync(verify_log).first_wrong == 2


def test_flipping_any_one_row_is_reported_with_its_exact_number(store: Database) -> None:
    """T-O3, each of 1,000 rows in turn: one column of one row, then back."""
    size = 1000 if store.engine.dialect.name == "sqlite" else 100
    fill(store, size)
    flips = (
        ("audit", "subject", "'x'"),
        ("audit", "actor", "'x'"),
        ("audit", "action", "'x'"),
        ("audit_leaves", "body", "leaf_hash"),
        ("audit_leaves", "leaf_hash", "salt"),
        ("audit_leaves", "salt", "leaf_hash"),
        ("audit_leaves", "job", "'x'"),
    )

    def flip(session: Session, number: int) -> int | None:
        table, column, value = flips[number % len(flips)]
        place = {"index": number}
        # Constants of this test, all of them.
        statement = f'UPDATE {table} SET {column} = {value} WHERE "index" = :index'  # noqa: S608
        with session.begin_nested() as savepoint:
            session.execute(sa.text(statement), place)
            # The page around the row stands for the log: each page is verified by itself.
            wrong = first_wrong_of(session, number)
            savepoint.rollback()
        return wrong

    numbers = range(1, size + 1)
    assert store.run_sync(lambda session: [flip(session, number) for number in numbers]) == list(numbers)
    assert store.run_sync(verify_log) == LogState(size, store.run_sync(lambda s: AuditRepository(s).root(size)))


def first_wrong_of(session: Session, number: int) -> int | None:
    """Return what a verification says that has come to this row: the whole one for one row in fifty."""
    if number % 50 == 1:
        return verify_log(session).first_wrong
    entry = _entries(session, number, number).get(number)
    return number if entry is None or not _is_sound(entry) else None


@pytest.mark.parametrize("number", [1, 20, 39, 40, 41, 50])
def test_a_change_is_found_whatever_page_it_is_on(
    store: Database, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.store.audit_check.PAGE", 20)
    fill(store, 50)
    statement = sa.text('UPDATE audit_nodes SET hash = :hash WHERE level = 1 AND "index" = :index')
    values = {"hash": b"x" * 32, "index": (number - 1) // 2}
    store.run_sync(lambda session: session.execute(statement, values))
    assert store.run_sync(verify_log).first_wrong == (number + 1) // 2 * 2


def test_without_its_salt_an_act_verifies_only_as_long_as_its_words_are_blank(store: Database) -> None:
    fill(store, 3)
    before = store.run_sync(verify_log)
    for statement in (
        "UPDATE audit SET actor = '', subject = '' WHERE \"index\" = 2",
        'UPDATE audit_leaves SET salt = NULL WHERE "index" = 2',
    ):
        store.run_sync(lambda session: session.execute(sa.text(statement)))  # noqa: B023
    assert store.run_sync(verify_log) == before
    store.run_sync(lambda session: session.execute(sa.text("UPDATE audit SET actor = 'eve' WHERE \"index\" = 2")))
    assert store.run_sync(verify_log).first_wrong == 2


def test_erasing_a_person_erases_every_entry_that_names_them_and_nobody_else(store: Database) -> None:
    def write(session: Session) -> None:
        for actor, subject in (
            ("ada", "job 1"),
            ("olga", "person ada (researcher)"),
            ("adam", "to ada.b"),
            ("bob", "x"),
        ):
            AuditRepository(session).append(at=NOW, actor=actor, action="told", subject=subject)

    store.run_sync(write)
    act = Act("root", NOW)
    assert store.run_sync(lambda session: erase_words(session, index=None, person="ada", act=act)) == 2
    state = store.run_sync(verify_log)
    assert (state.size, state.first_wrong) == (5, None)
    found = store.run_sync(lambda session: AuditRepository(session).leaves(0, 10))
    assert [(one.entry.actor, one.entry.subject) for one in found] == [
        ("", ""),
        ("", ""),
        ("adam", "to ada.b"),
        ("bob", "x"),
        ("root", "2 entries"),
    ]
    # As a word: three letters may stand in a hash.
    assert not re.search(rb"\bada\b", found[-1].body)
    with pytest.raises(HansaError) as caught:
        store.run_sync(lambda session: erase_words(session, index=1, person="", act=act))
    assert caught.value.reason is Reason.LOG_ENTRY_UNKNOWN
    assert store.run_sync(lambda session: erase_words(session, index=4, person="", act=act)) == 1


def test_where_the_log_cannot_be_written_nothing_is_done(store: Database) -> None:
    fill(store, 2)
    store.run_sync(lambda session: session.execute(sa.text("ALTER TABLE audit_leaves RENAME TO away")))
    before = store.run_sync(lambda session: session.execute(sa.text("SELECT count(*) FROM nodes")).scalar())

    def invite(session: Session) -> None:
        invite_node(session, Invite(node=NodeId("FI"), secret="secret", expires_at=NOW), Act("op1", NOW))

    with pytest.raises(DBAPIError):
        store.run_sync(invite)
    assert store.run_sync(lambda session: session.execute(sa.text("SELECT count(*) FROM nodes")).scalar()) == before


def test_acts_from_before_the_tree_become_its_first_leaves(empty_store_url: str) -> None:
    database = Database.open(empty_store_url)

    def old(session: Session) -> None:
        config = _config()
        config.attributes["connection"] = session.connection()
        command.upgrade(config, "0002")
        for index in (1, 2, 3):
            session.execute(
                sa.text("INSERT INTO audit VALUES (:index, :at, 'olga', 'node_invited', 'FI')"),
                {"index": index, "at": "2026-05-01 12:00:00.000000"},
            )

    database.run_sync(old)
    migrate(database)
    fill(database, 2)
    found = database.run_sync(verify_log)
    assert (found.size, found.first_wrong) == (5, None)
    database.close()


def test_the_command_says_whether_the_record_is_whole(tmp_path: Path) -> None:
    folder, runner = tmp_path / "state", CliRunner()
    given = write_trust(build_trust_world(now=utc_now()), tmp_path / "given")
    begun = runner.invoke(main, ["init", str(folder), *as_arguments(given)])
    assert begun.exit_code == 0, begun.output
    sound = runner.invoke(main, ["audit", "verify", str(folder)])
    assert (sound.exit_code, sound.output.splitlines()[:2]) == (0, ["sound", "size  1"])
    database = Database.open(f"sqlite:///{next(folder.glob('*.db'))}")
    database.run_sync(lambda session: session.execute(sa.text("UPDATE audit SET subject = 'eve'")))
    database.close()
    broken = runner.invoke(main, ["audit", "verify", str(folder)])
    assert (broken.exit_code, "entry 1" in broken.output) == (1, True)
    refused = runner.invoke(main, ["audit", "erase", str(folder)])
    assert refused.exit_code == 2
    erased = runner.invoke(main, ["audit", "erase", str(folder), "--index", "1"])
    assert (erased.exit_code, erased.output) == (0, "1 entry erased\n")
    assert runner.invoke(main, ["audit", "verify", str(folder)]).exit_code == 0
    nobody = runner.invoke(main, ["audit", "erase", str(folder), "--person", "nobody"])
    assert (nobody.exit_code, "LOG_ENTRY_UNKNOWN" in nobody.output) == (1, True)
