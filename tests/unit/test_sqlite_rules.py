"""The rules that both daemons keep for a store in an SQLite file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from coordinator.store.database import Database as CoordinatorStore
from hansa.contract.errors import HansaError, Reason
from hansa.contract.margins import MIB, Margins, may_remake, shortage
from hansa.runtime.sqlite import (
    StoreLock,
    check_file,
    check_place,
    copy_store,
    file_system_of,
    open_reader,
    prepare_writer,
    sqlite_module,
)
from node_agent.store.database import Database as NodeStore

_FULL = 2


def coordinator_store(path: Path) -> CoordinatorStore:
    return CoordinatorStore.open(f"sqlite:///{path}")


@pytest.fixture(params=[coordinator_store, NodeStore.open])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    opener: Callable[[Path], Any] = request.param
    made = opener(tmp_path / "store.db")
    yield made
    made.close()


def pragma(store: Any, name: str) -> Any:
    return store.run_sync(lambda session: session.connection().exec_driver_sql(f"PRAGMA {name}").scalar())


def test_a_commit_is_on_the_disk_before_anybody_hears_of_it(store: Any) -> None:
    assert (pragma(store, "journal_mode"), pragma(store, "synchronous")) == ("wal", _FULL)


def test_a_damaged_or_planted_file_runs_nothing_and_is_noticed(store: Any) -> None:
    assert [pragma(store, name) for name in ("trusted_schema", "cell_size_check", "foreign_keys")] == [0, 1, 1]
    assert not pragma(store, "mmap_size")


def test_a_store_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    script = (
        "import sys; from pathlib import Path; from hansa.runtime.sqlite import StoreLock; "
        "StoreLock.take(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        for opener in (coordinator_store, NodeStore.open):
            with pytest.raises(HansaError) as refused:
                opener(path)
            assert refused.value.reason is Reason.STORE_IN_USE
        other.kill()
    StoreLock.take(path).release()  # the kernel has dropped it


def test_who_only_looks_sees_a_store_in_use_and_cannot_write(tmp_path: Path) -> None:
    with (
        closing(coordinator_store(tmp_path / "store.db")),
        closing(CoordinatorStore.look(f"sqlite:///{tmp_path}/store.db")) as looking,
    ):
        assert pragma(looking, "query_only") == 1
        with pytest.raises(Exception, match="readonly"):
            looking.run_sync(lambda session: session.connection().exec_driver_sql("CREATE TABLE t (a)"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.db"
    with closing(sqlite_module().connect(str(path))) as connection:
        prepare_writer(connection)
        connection.execute("CREATE TABLE t (a, b)")
        connection.execute("CREATE INDEX i ON t (b)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(n, f"{n}" * 20) for n in range(500)])
    return path


def test_a_page_that_does_not_hang_together_is_found(file: Path, tmp_path: Path) -> None:
    data = bytearray(file.read_bytes())
    page = 4096
    data[page : page + 8] = bytes([13, 0, 0, 0xFF, 0xFF, 0, 1, 0])  # a leaf that says it has 65,535 cells
    file.write_bytes(data)
    with pytest.raises(HansaError) as refused:
        check_file(file)
    assert refused.value.reason is Reason.STORE_DAMAGED
    for opener in (coordinator_store, NodeStore.open):
        with pytest.raises(HansaError) as refused:
            opener(file)
        assert (refused.value.reason, "store-damaged.md" in refused.value.public) == (Reason.STORE_DAMAGED, True)
    with pytest.raises(HansaError):
        copy_store(file, tmp_path / "copy.db")


def test_what_is_no_database_is_damaged_and_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"something else, and quite long" * 200)
    for opener in (coordinator_store, NodeStore.open):
        with pytest.raises(HansaError) as refused:
            opener(path)
        assert refused.value.reason is Reason.STORE_DAMAGED
    assert path.read_bytes() == b"something else, and quite long" * 200


def test_a_copy_is_one_sound_file_of_one_moment(file: Path, tmp_path: Path) -> None:
    copy_store(file, tmp_path / "copy.db")
    assert sorted(path.name for path in tmp_path.glob("copy.db*")) == ["copy.db"]
    with closing(open_reader(tmp_path / "copy.db")) as connection:
        assert connection.execute("SELECT count(*), sum(a) FROM t").fetchone() == (500, sum(range(500)))
    with pytest.raises(FileExistsError):
        copy_store(file, tmp_path / "copy.db")


MOUNTS = """\
22 28 0:20 / /sys rw - sysfs sysfs rw
28 0 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 28 0:50 / /mnt/share rw shared:2 - nfs4 server:/export rw
41 28 0:51 / /mnt/share/local rw - xfs /dev/vdb rw
42 28 0:52 / /mnt/with\\040blank rw - cifs //server/x rw
43 28 0:53 / /home/user/cloud rw - fuse.sshfs host: rw
44 28 0:54 / /over rw - ext4 /dev/vdc rw
45 44 0:55 / /over rw - 9p host rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/lib/hansa", "ext4"),
        ("/mnt/share/hansa", "nfs4"),
        ("/mnt/sharepoint", "ext4"),
        ("/mnt/share/local/hansa", "xfs"),
        ("/mnt/with blank/x", "cifs"),
        ("/home/user/cloud/a", "fuse.sshfs"),
        ("/over/x", "9p"),
    ],
)
def test_a_store_on_a_network_file_system_is_refused(folder: str, kind: str) -> None:
    assert file_system_of(Path(folder), MOUNTS) == kind
    if kind in ("ext4", "xfs"):
        check_place(Path(folder) / "store.db", MOUNTS)
        return
    with pytest.raises(HansaError) as refused:
        check_place(Path(folder) / "store.db", MOUNTS)
    assert (refused.value.reason, kind in refused.value.public) == (Reason.CONFIG_INVALID, True)


def test_the_reserve_is_not_made_and_lost_in_turns() -> None:
    margins = Margins(reserve=64 * MIB, floor=128 * MIB)
    assert not may_remake(191 * MIB, margins)
    assert may_remake(192 * MIB, margins)
    # Once it is made, there is enough for new work.
    assert shortage(192 * MIB - margins.reserve, margins, reserved=True) == ""
    assert shortage(1 << 40, margins, reserved=False) != ""
    assert shortage(128 * MIB - 1, margins, reserved=True) != ""
