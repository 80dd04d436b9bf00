"""The tree over the coordinator's audit table, on SQLite and on PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from click.testing import CliRunner
from sqlalchemy.orm import Session

from coordinator.cli.main import main
from coordinator.store.audit import AuditRepository
from coordinator.store.audit_check import verify_log
from coordinator.store.database import Database
from coordinator.store.schema import _config, migrate
from hansa.contract.merkle import leaf_hash
from tests.support.people import public_pem
from tests.support.stores import empty_store_url, postgres, store

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


def test_without_its_salt_an_act_verifies_whatever_its_words_are_now(store: Database) -> None:
    fill(store, 3)
    before = store.run_sync(verify_log)
    for statement in (
        "UPDATE audit SET actor = '', subject = '' WHERE \"index\" = 2",
        'UPDATE audit_leaves SET salt = NULL WHERE "index" = 2',
    ):
        store.run_sync(lambda session: session.execute(sa.text(statement)))  # noqa: B023
    assert store.run_sync(verify_log) == before


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
    key, folder = tmp_path / "olga.pub", tmp_path / "state"
    key.write_text(public_pem())
    runner = CliRunner()
    begun = runner.invoke(
        main, ["init", str(folder), "--federation", "example.org", "--operator", "olga", "--operator-key", str(key)]
    )
    assert begun.exit_code == 0, begun.output
    sound = runner.invoke(main, ["audit", "verify", str(folder)])
    assert (sound.exit_code, sound.output.splitlines()[:2]) == (0, ["sound", "size  1"])
    database = Database.open(f"sqlite:///{next(folder.glob('*.db'))}")
    database.run_sync(lambda session: session.execute(sa.text("UPDATE audit SET subject = 'eve'")))
    database.close()
    broken = runner.invoke(main, ["audit", "verify", str(folder)])
    assert (broken.exit_code, "entry 1" in broken.output) == (1, True)
