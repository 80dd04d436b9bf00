"""A backup as a folder: a store, what goes with it, and a manifest that names every file by its digest.

It is made beside its place and moved there at the end, and so is what is
restored from it: whoever is killed in between leaves the old or the new, never
half of either.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hansa.contract.errors import HansaError, Reason
from hansa.contract.generation import MOST_DRAWN, raised
from hansa.runtime.durable import sync_folder, write_durably
from hansa.runtime.sqlite import check_file

MANIFEST: Final = "manifest.json"
STORE: Final = "store.db"
# The highest generation that was restored from here; beside the manifest, since it comes later.
RESTORED: Final = "restored"
_FORMAT: Final = 1
_AT_CWD, _EXCHANGE = -100, 2


class Manifest(BaseModel):
    """What a backup is of. ``heads`` says how far each chain goes, ``files`` the SHA-256 of each file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = Field(ge=_FORMAT, le=_FORMAT)
    of: str
    name: str
    made_at: datetime
    hansa_version: str
    store_uuid: str
    generation: int = Field(ge=0, lt=1 << 62)
    schema_version: str
    # Whether private keys are in it.
    keys: bool
    # Where the state folder was.
    state: str
    heads: Mapping[str, Any]
    files: Mapping[str, str]


@contextmanager
def making(place: Path) -> Iterator[Path]:
    """Yield a new private folder beside ``place``; it is moved there when all went well, else deleted.

    Raises:
        HansaError: ``FILE_INVALID``; something is at ``place`` already, or
            the folder cannot be made.
    """
    place = place.absolute()
    if os.path.lexists(place):
        raise HansaError(Reason.FILE_INVALID, f"{place} is there already; nothing was changed.")
    with beside(place) as part:
        yield part
        sync_tree(part)
        part.rename(place)
        sync_folder(place.parent)


@contextmanager
def beside(place: Path) -> Iterator[Path]:
    """Yield a new private folder in the parent of ``place``, hence on its file system; what is left of it is deleted.

    So is what a process left there that was killed: such a folder is locked by nobody.

    Raises:
        HansaError: ``FILE_INVALID``; something could not be read or written.
    """
    part = place.parent / f".{place.name}.{secrets.token_hex(6)}.part"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        part.mkdir(mode=0o700)
        lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        raise HansaError(Reason.FILE_INVALID, f"{error.filename or place}: {error.strerror}.") from error


def _sweep(place: Path) -> None:
    for part in place.parent.glob(f".{glob.escape(place.name)}.*.part"):
        descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def put(source: Path, target: Path) -> None:
    """Copy a file, or a folder with all that is in it, closed to others; links are left out.

    What the source grants to others it grants no more: a backup is as private as its most private file.
    """
    if source.is_symlink():
        return
    if not source.is_dir():
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o600)
        return
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for one in sorted(source.iterdir()):
        put(one, target / one.name)


def seal(folder: Path, **facts: Any) -> Manifest:
    """Write the manifest of all that is in ``folder``; return it.

    Args:
        folder: the backup; nothing may be added afterwards.
        facts: the manifest's fields but ``format``, ``hansa_version`` and ``files``.
    """
    files = {str(path.relative_to(folder)): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = Manifest(format=_FORMAT, hansa_version=version("hansa"), files=files, **facts)
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True)
    write_durably(folder / MANIFEST, text.encode() + b"\n")
    return manifest


def verify(folder: Path, of: str) -> Manifest:
    """Return the manifest of the backup in ``folder``, having read every byte of it.

    Args:
        folder: the backup.
        of: whose it has to be: ``coordinator`` or ``node``.

    Raises:
        HansaError: ``BACKUP_INVALID``; a file is missing, damaged, or not in
            the manifest, or the store in it is not sound.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
        _compare(folder, manifest, found - {MANIFEST, RESTORED})
        check_file(folder / STORE)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _invalid(f"its manifest is not one: {'.'.join(map(str, first['loc']))} {first['msg']}") from error
    except OSError as error:
        raise _invalid(f"{error.filename}: {error.strerror}") from error
    except HansaError as error:
        raise error if error.reason is Reason.BACKUP_INVALID else _invalid("the store in it is damaged") from error
    if manifest.of != of:
        raise _invalid(f"it is one of a {manifest.of}")
    return manifest


def next_generation(backup: Path, manifest: Manifest, *known: int) -> int:
    """Return the generation of a store that is restored from ``backup`` now, and note it there.

    Where that cannot be written, two restores may only by chance have one generation.
    """
    try:
        noted = int((backup / RESTORED).read_text(encoding="ascii"))
    except (OSError, ValueError):
        noted = 0
    generation = raised(manifest.generation, noted, *known, draw=secrets.randbelow(MOST_DRAWN))
    with contextlib.suppress(OSError):
        _note(backup / RESTORED, generation)
    return generation


def _note(path: Path, number: int) -> None:
    # In place and in one write, never shorter than before: no second file may lie in a backup, not even for a moment.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.pwrite(descriptor, b"%d\n" % number, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _compare(folder: Path, manifest: Manifest, found: set[str]) -> None:
    for name in sorted({*found, *manifest.files}):
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or (folder / name).is_symlink():
            raise _invalid(f"{name} leads out of it")
        if name not in manifest.files:
            raise _invalid(f"{name} is not in its manifest")
        if name not in found:
            raise _invalid(f"{name} is missing")
        if _sha256(folder / name) != manifest.files[name]:
            raise _invalid(f"{name} was changed")


def _invalid(why: str) -> HansaError:
    return HansaError(Reason.BACKUP_INVALID, f"The backup cannot be used: {why}.", field="backup")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def move_in(part: Path, place: Path, now: datetime) -> Path | None:
    """Put the folder ``part`` at ``place`` in one step; return where what was there is now, if anything was.

    Raises:
        OSError: nothing has changed.
    """
    sync_tree(part)
    if not os.path.lexists(place):
        part.rename(place)
        sync_folder(place.parent)
        return None
    old = place.with_name(f"{place.name}.before-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}")
    # Under its last name before the exchange: what was there is never under one that the next restore sweeps away.
    part.rename(old)
    try:
        _exchange(old, place)
    except BaseException:
        old.rename(part)
        raise
    sync_folder(place.parent)
    return old


def _exchange(first: Path, second: Path) -> None:
    """Let two folders change places at once; by two renames where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_CWD, os.fsencode(first), _AT_CWD, os.fsencode(second), _EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), str(second))
    aside = first.with_name(f"{first.name}.old")
    second.rename(aside)
    first.rename(second)
    aside.rename(first)


def sync_tree(folder: Path) -> None:
    """Make the files and names in ``folder`` durable, the deepest first."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)
