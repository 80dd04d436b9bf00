"""Takes the one declared summary out of a run's scratch folder.

The folder was the analysis's to write, so nothing in it is believed: no link is
followed, only a plain file with one name is opened, and no more than its limit
is read. The caller has confirmed before that no process of the run is alive;
what is judged here can no longer change.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hansa.contract.errors import RunReason

SUMMARY: Final = "summary.json"
_LOOKALIKES: Final = ("summary*.json", "*.summary.json")
# Snakemake's own folder and the private home are no place for results.
_NOT_SEARCHED: Final = frozenset({".snakemake", ".home"})
_MAX_DEPTH: Final = 16
_MAX_ENTRIES: Final = 100_000


class OutputError(Exception):
    """The run left no summary that may be looked at."""

    def __init__(self, reason: RunReason, log: str) -> None:
        super().__init__(log)
        self.reason = reason


def collect(work: Path, max_bytes: int) -> str:
    """Return the text of the summary in ``work``.

    Args:
        work: the run's scratch folder.
        max_bytes: the largest summary that is taken.

    Raises:
        OutputError: there is none, there are two, it is not a plain file, too
            large, or not UTF-8.
    """
    folder = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = _candidates(folder)
        if len(found) > 1:
            raise OutputError(RunReason.OUTPUT_AMBIGUOUS, f"{len(found)} files could be the summary")
        if found != [SUMMARY]:
            raise OutputError(RunReason.OUTPUT_MISSING, f"there is no {SUMMARY}")
        return _read(folder, max_bytes)
    finally:
        os.close(folder)


def _candidates(folder: int) -> list[str]:
    """Return what could be meant as the summary, by path within ``folder``."""
    found: list[str] = []
    for depth, name, path in _walk(folder):
        patterns = _LOOKALIKES if depth == 0 else (SUMMARY,)
        if any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in patterns):
            found.append(path)
    return found


def _walk(folder: int) -> Iterator[tuple[int, str, str]]:
    """Yield (depth, name, path) of what lies below ``folder``; links are not followed."""
    waiting = [("", 0)]
    entries = 0
    while waiting:
        path, depth = waiting.pop()
        for entry, is_folder in _list(folder, path):
            entries += 1
            if entries > _MAX_ENTRIES:
                raise OutputError(RunReason.OUTPUT_AMBIGUOUS, "too many files to search")
            inner = f"{path}/{entry}" if path else entry
            yield depth, entry, inner
            if is_folder and entry not in _NOT_SEARCHED:
                if depth == _MAX_DEPTH:
                    raise OutputError(RunReason.OUTPUT_AMBIGUOUS, "folders too deep to search")
                waiting.append((inner, depth + 1))


def _list(folder: int, path: str) -> list[tuple[str, bool]]:
    """List the folder at ``path``, opening it component by component."""
    current = os.dup(folder)
    try:
        for part in path.split("/") if path else ():
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = inner
        with os.scandir(current) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except OSError as error:
        raise OutputError(RunReason.OUTPUT_KIND, f"a folder cannot be searched: {error.strerror}") from error
    finally:
        os.close(current)


def _read(folder: int, max_bytes: int) -> str:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        descriptor = os.open(SUMMARY, flags, dir_fd=folder)
    except OSError as error:
        # A link (ELOOP) or a socket (ENXIO); there is something of this name.
        name = errno.errorcode.get(error.errno or 0, "?")
        raise OutputError(RunReason.OUTPUT_KIND, f"the summary cannot be opened: {name}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_mode & (stat.S_ISUID | stat.S_ISGID):
            raise OutputError(RunReason.OUTPUT_KIND, "the summary is not a plain file with one name")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            content = file.read(max_bytes + 1) if found.st_size <= max_bytes else None
    finally:
        os.close(descriptor)
    if content is None or len(content) > max_bytes:
        raise OutputError(RunReason.OUTPUT_TOO_LARGE, f"the summary is over {max_bytes} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OutputError(RunReason.SUMMARY_INVALID, "the summary is not UTF-8") from error
