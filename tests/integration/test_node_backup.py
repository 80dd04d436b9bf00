"""A node's backup is whole, and what is restored from it is the node, one generation on, with its datasets."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hansa.contract.errors import HansaError, Reason
from hansa.runtime.drain import DrainFile
from hansa.runtime.sqlite import open_reader
from node_agent.audit.trail import AuditTrail
from node_agent.backups import Backups, Content, Wanted, back_up, check, restore
from node_agent.config import lock_state_folder
from node_agent.store.database import Database
from node_agent.store.outbox import append_event, event_head
from tests.support.agent import START, Bench, make_bench
from tests.support.node_commands import hansa_node

pytestmark = pytest.mark.slow

KEY = "keys/credential.pem"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    made.state.path.chmod(0o700)
    made.state.policy_file.write_text("")
    (made.state.path / KEY).write_text("a key")
    yield made
    made.database.close()


def facts(path: Path) -> dict[str, Any]:
    with closing(open_reader(path)) as connection:
        row = connection.execute("SELECT store_uuid, generation FROM store").fetchone()
        folders = [one for (one,) in connection.execute("SELECT folder FROM datasets")]
        events = connection.execute("SELECT max(seq) FROM events").fetchone()[0]
    return {"uuid": row[0], "generation": row[1], "folders": folders, "events": events}


async def test_the_agent_makes_a_backup_while_it_writes(bench: Bench, tmp_path: Path) -> None:
    await bench.database.run(lambda session: append_event(session, b"before", bench.now))
    backups = Backups(state=bench.state, clock=lambda: bench.now)
    manifest = await backups.make(tmp_path / "backup", Content())
    await bench.database.run(lambda session: append_event(session, b"after", bench.now))
    head = await bench.database.run(event_head)
    assert (manifest.of, manifest.heads["events"]) == ("node", head.seq - 1)
    assert check(tmp_path / "backup") == manifest
    for path in (tmp_path / "backup", *(tmp_path / "backup").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    # People's genotypes are in it only if asked for.
    assert not (tmp_path / "backup" / "datasets").exists()
    assert (tmp_path / "backup" / KEY).read_text() == "a key"
    with pytest.raises(HansaError) as refused:
        await backups.make(tmp_path / "backup", Content())
    assert refused.value.reason is Reason.FILE_INVALID


def test_what_is_restored_is_the_node_one_generation_on_with_its_datasets(bench: Bench, tmp_path: Path) -> None:
    bench.database.close()
    back_up(bench.state, tmp_path / "backup", Content(), START)
    before = facts(bench.state.database)
    done = restore(tmp_path / "backup", bench.state.path, Wanted(), by="ops", now=START)
    after = facts(bench.state.database)
    assert after["uuid"] == before["uuid"]
    assert after["generation"] == done.generation > before["generation"]
    assert done.missing == []
    assert all(Path(folder).is_dir() for folder in after["folders"])
    assert done.old is not None
    assert (done.old / "node.db").exists()

    database = Database.open(bench.state.database)
    log = asyncio.run(AuditTrail(database=database).verify())
    database.close()
    assert log["fault"] is None


def test_who_drains_before_a_restore_still_drains_after_it(bench: Bench, tmp_path: Path) -> None:
    bench.database.close()
    back_up(bench.state, tmp_path / "backup", Content(), START)
    restore(tmp_path / "backup", bench.state.path, Wanted(), by="ops", now=START)
    assert not DrainFile(bench.state.path).is_set()
    DrainFile(bench.state.path).set(START)
    restore(tmp_path / "backup", bench.state.path, Wanted(), by="ops", now=START)
    assert DrainFile(bench.state.path).since() == START


def test_at_another_place_datasets_that_are_not_there_are_named(bench: Bench, tmp_path: Path) -> None:
    bench.database.close()
    back_up(bench.state, tmp_path / "without", Content(), START)
    back_up(bench.state, tmp_path / "with", Content(datasets=True), START)
    done = restore(tmp_path / "without", tmp_path / "one", Wanted(), by="ops", now=START)
    assert len(done.missing) == 1
    done = restore(tmp_path / "with", tmp_path / "two", Wanted(), by="ops", now=START)
    assert done.missing == []
    (folder,) = facts(tmp_path / "two" / "node.db")["folders"]
    assert Path(folder).is_relative_to(tmp_path / "two")
    assert Path(folder).is_dir()


def test_sandboxes_can_read_what_was_restored_for_them_and_nobody_can_enter_the_state_folder(
    bench: Bench, tmp_path: Path
) -> None:
    bench.database.close()
    back_up(bench.state, tmp_path / "backup", Content(datasets=True), START)
    restore(tmp_path / "backup", tmp_path / "new", Wanted(), by="ops", now=START)
    shown = [*(tmp_path / "new" / "analyses").glob("*"), *(tmp_path / "new" / "datasets").glob("*/*")]
    files = [path for folder in shown for path in (folder, *folder.rglob("*"))]
    assert len(shown) == 2
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o444), path
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new" / KEY).stat().st_mode) == 0o600


def test_an_agent_that_runs_is_not_restored_over(bench: Bench, tmp_path: Path) -> None:
    back_up(bench.state, tmp_path / "backup", Content(), START)
    with lock_state_folder(bench.state), pytest.raises(HansaError) as refused:
        restore(tmp_path / "backup", bench.state.path, Wanted(), by="ops", now=START)
    assert refused.value.reason is Reason.AGENT_RUNNING
    assert list(tmp_path.glob("state.before-*")) == []


def test_a_second_process_is_told_that_the_store_is_in_use(bench: Bench) -> None:
    with pytest.raises(HansaError) as refused:
        Database.open(bench.state.database)
    assert refused.value.reason is Reason.STORE_IN_USE


def test_the_commands_work_where_no_agent_runs(bench: Bench, tmp_path: Path) -> None:
    bench.database.close()
    state = bench.state.path
    made = hansa_node(state, "backup", str(tmp_path / "backup"), "--without-keys", "--output", "json")
    assert (made.code, json.loads(made.out)["keys"]) == (0, False)
    assert not (tmp_path / "backup" / "keys").exists()
    sound = hansa_node(state, "restore", str(tmp_path / "backup"), "--verify")
    assert (sound.code, sound.err) == (0, "")
    refused = hansa_node(state, "restore", str(tmp_path / "backup"), "--output", "json")
    assert (refused.code, json.loads(refused.err)["error"]["reason"]) == (1, "KEY_INVALID")
    again = hansa_node(state, "restore", str(tmp_path / "backup"), "--keys-from", str(state), "--output", "json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["generation"] > 1
    assert (state / KEY).read_text() == "a key"


def test_a_damaged_store_is_refused_at_the_start(bench: Bench) -> None:
    bench.database.close()
    data = bytearray(bench.state.database.read_bytes())
    data[4096 * 3 : 4096 * 3 + 512] = bytes(range(256)) * 2
    bench.state.database.write_bytes(data)
    for _ in range(2):  # nothing is made anew in its place
        with pytest.raises(HansaError) as refused:
            Database.open(bench.state.database)
        assert refused.value.reason is Reason.STORE_DAMAGED
        assert "store-damaged.md" in refused.value.public


def test_the_generation_lies_above_what_the_operator_knows_of(bench: Bench, tmp_path: Path) -> None:
    """A restored store that kept its generation would pass for the one that its peers know."""
    bench.database.close()
    back_up(bench.state, tmp_path / "backup", Content(), START)
    restore(tmp_path / "backup", tmp_path / "new", Wanted(above=500), by="ops", now=START)
    found = facts(tmp_path / "new" / "node.db")
    assert found["generation"] > 500
    assert len(found["folders"]) == 1
