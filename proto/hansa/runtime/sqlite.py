"""The rules for a store in an SQLite file, the same for both daemons.

One process owns the file, with one connection that writes: a lock beside the
file keeps every other process out. That is also what makes SQLite before
3.51.3 safe to use here, whose write-ahead log can lose a commit when two
connections write or checkpoint at once. Whoever else has to look (a backup,
the doctor) opens the file read only: such a connection does neither.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Self
from urllib.parse import quote

from hansa.contract.errors import HansaError, Reason

BUSY_MS: Final = 5000
_SAFE: Final = (
    # A commit is on the disk before anybody hears of it.
    "synchronous=FULL",
    "foreign_keys=ON",
    f"busy_timeout={BUSY_MS}",
    # A damaged or planted file must not run functions from its schema, nor be read past its cells.
    "trusted_schema=OFF",
    "cell_size_check=ON",
    # A read error in a mapped file would be a signal, not an exception.
    "mmap_size=0",
)
_CORRUPT, _FULL, _NOT_A_DATABASE, _NO_ROOM_FOR_INDEX = 11, 13, 26, 4874
_PRIMARY: Final = 0xFF
# Locks and the shared index of the log need the real thing; over a network they are promises only.
_FOREIGN: Final = re.compile(r"nfs\d?|cifs|smb\d?|smbfs|afs|ncpfs|ceph|glusterfs|lustre|9p|fuse(\..+|blk)?")
_MOUNT_POINT, _SEPARATOR = 4, "-"
_MOUNTS: Final = Path("/proc/self/mountinfo")
_RUNBOOK: Final = "docs/runbooks/store-damaged.md"


def sqlite_module() -> ModuleType:
    """Return the newest SQLite there is: pysqlite3's own, else Python's."""
    try:
        return importlib.import_module("pysqlite3.dbapi2")
    except ImportError:
        return sqlite3


def sqlite_version() -> str:
    """Return the version of the SQLite that stores use."""
    return str(sqlite_module().sqlite_version)


def prepare_writer(connection: Any) -> None:
    """Make a new connection the store's writer: durable at each commit, transactions begun by the caller.

    Raises:
        HansaError: ``STORE_DAMAGED``; the file is no sound database.
    """
    # The driver must not begin transactions on its own: BEGIN IMMEDIATE is ours.
    connection.isolation_level = None
    with damage_named():
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode not in ("wal", "memory"):
            raise HansaError(Reason.CONFIG_INVALID, "The store's place has no write-ahead log.", field="database")
        _set(connection)


def open_reader(path: Path) -> Any:
    """Return a connection to ``path`` that can neither write nor checkpoint.

    Raises:
        HansaError: ``STORE_DAMAGED``; the file is no sound database.
    """
    connection = sqlite_module().connect(f"file:{quote(str(path))}?mode=ro", uri=True, check_same_thread=False)
    try:
        connection.isolation_level = None
        with damage_named():
            _set(connection)
            connection.execute("PRAGMA query_only=ON").close()
    except BaseException:
        connection.close()
        raise
    return connection


def _set(connection: Any) -> None:
    for pragma in _SAFE:
        connection.execute(f"PRAGMA {pragma}").close()


def check_sound(connection: Any) -> None:
    """Return if every page of the database hangs together.

    Raises:
        HansaError: ``STORE_DAMAGED``.
    """
    with damage_named():
        found = connection.execute("PRAGMA quick_check(1)").fetchall()
    if [tuple(row) for row in found] != [("ok",)]:
        raise _damaged(str(found[0][0]) if found else "no answer")


@contextmanager
def damage_named() -> Iterator[None]:
    """Give an error of a damaged file its reason.

    Raises:
        HansaError: ``STORE_DAMAGED``.
    """
    try:
        yield
    except Exception as error:
        if _code(error) & _PRIMARY in (_CORRUPT, _NOT_A_DATABASE):
            raise _damaged(str(error)) from error
        raise


def _damaged(detail: str) -> HansaError:
    return HansaError(Reason.STORE_DAMAGED, f"The store is damaged; see {_RUNBOOK}.", field="database", log=detail)


def is_full(error: BaseException | None) -> bool:
    """Say whether ``error`` is the driver's word for a disk without room."""
    return _code(error) in (_FULL, _NO_ROOM_FOR_INDEX)


def _code(error: BaseException | None) -> int:
    code = getattr(error, "sqlite_errorcode", 0)
    return code if isinstance(code, int) else 0


def check_place(path: Path, mounts: str | None = None) -> None:
    """Return if the file system under ``path`` is a local one.

    Args:
        path: the database's file, which need not be there yet.
        mounts: the mounts as ``/proc/self/mountinfo`` has them; read there by default.

    Raises:
        HansaError: ``CONFIG_INVALID``; a network file system, or one that a program makes (FUSE).
    """
    if mounts is None:
        mounts = _MOUNTS.read_text(encoding="utf-8") if _MOUNTS.exists() else ""
    kind = file_system_of(path.parent.resolve(), mounts)
    if _FOREIGN.fullmatch(kind):
        raise HansaError(
            Reason.CONFIG_INVALID,
            f"The store lies on {kind}; it needs a local file system. Move it, or use PostgreSQL.",
            field="database",
        )


def file_system_of(folder: Path, mounts: str) -> str:
    """Return the type of the file system that ``folder`` is on; empty if the mounts do not say.

    Args:
        folder: an absolute path without links.
        mounts: the text of ``/proc/self/mountinfo``.
    """
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if _SEPARATOR not in fields:
            continue
        place = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[_MOUNT_POINT]))
        # Later mounts lie above earlier ones.
        if folder.is_relative_to(place) and len(place.parts) >= best:
            best, kind = len(place.parts), fields[fields.index(_SEPARATOR) + 1]
    return kind


class StoreLock:
    """The right to open a store's file, for one process. Held until ``release`` or the process's end."""

    def __init__(self, descriptor: int) -> None:
        """Take an open, locked file; ``take`` makes one."""
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> Self:
        """Lock the store at ``path``, by the file ``<path>.lock`` beside it.

        Raises:
            HansaError: ``STORE_IN_USE``; another process has it.
        """
        name = path.with_name(path.name + ".lock")
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise HansaError(Reason.STORE_IN_USE, field="database") from error
        return cls(descriptor)

    def release(self) -> None:
        """Give the store free. May be repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def copy_store(source: Path, target: Path) -> None:
    """Copy the store at ``source`` as it stands now to the new file ``target``, whole and on the disk.

    One read transaction sees one state of the store; whoever writes goes on
    writing. The copy is one file, without a log beside it.

    Raises:
        HansaError: ``STORE_DAMAGED``; the source, or the copy, is not sound.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with closing(open_reader(source)) as reader, closing(sqlite_module().connect(str(target))) as copy, damage_named():
        reader.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE").close()
        check_sound(copy)
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_file(path: Path) -> None:
    """Return if the database at ``path``, which nobody uses, is sound; nothing beside it is made.

    Raises:
        HansaError: ``STORE_DAMAGED``.
    """
    uri = f"file:{quote(str(path))}?mode=ro&immutable=1"
    with damage_named(), closing(sqlite_module().connect(uri, uri=True)) as connection:
        check_sound(connection)
