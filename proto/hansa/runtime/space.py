"""Room on the disk of a store: kept in reserve, watched, and given up when it is needed.

A daemon that has run out of disk must still be able to write down that work
has ended, or the disk stays full for ever. So a file of some MiB holds the
room for that; it is deleted when a write fails for lack of room, and made anew
when there is enough. From a floor of free space on down, and as long as the
reserve is gone, new work is refused: what is refused costs nothing, and what
is not acknowledged comes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from pathlib import Path
from typing import Any, Final

import structlog

from hansa.contract.margins import MIB, Margins, may_remake, shortage

_log = structlog.get_logger(__name__)

RESERVE_FILE: Final = "reserve"
# Below this a store may not even be opened: its log and the log's index take room.
_OPENING: Final = 2 * MIB
_LOOK_SECONDS: Final = 1.0


class Space:
    """The disk of one store. ``make_room`` is called by the store's thread, the rest by the event loop."""

    def __init__(self, folder: Path | None, margins: Margins) -> None:
        """Take the folder that the store lies in; None where its disk is not ours to watch."""
        self._folder = folder
        self._margins = margins
        self._lock = threading.Lock()
        self._short = ""

    @property
    def short(self) -> str:
        """Why new work is refused; empty if it is not."""
        return self._short

    def begin(self) -> None:
        """Look for the first time, before the store is opened; on a full disk the reserve makes that possible."""
        if self._folder is not None and self.free() < _OPENING:
            self.make_room()
        else:
            self.look()

    def make_room(self) -> bool:
        """Give up the reserve after a write that found no room; return whether there was one."""
        if self._folder is None:
            return False
        with self._lock:
            try:
                (self._folder / RESERVE_FILE).unlink()
                given = True
            except FileNotFoundError:
                given = False
            self._become(shortage(self.free(), self._margins, reserved=False))
        return given

    def look(self) -> None:
        """Look how much is free, and make the reserve anew if there is room."""
        if self._folder is None:
            return
        with self._lock:
            reserved = self._reserved()
            if not reserved and may_remake(self.free(), self._margins):
                reserved = self._remake()
            self._become(shortage(self.free(), self._margins, reserved=reserved))

    async def run(self) -> None:
        """Look once a second, for ever."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(_LOOK_SECONDS)

    def free(self) -> int:
        """Return how many bytes we may still write, beside the reserve."""
        found = os.statvfs(self._folder or "/")
        return found.f_bavail * found.f_frsize

    def standing(self) -> dict[str, Any]:
        """Return how it stands, for the operator."""
        if self._folder is None:
            return {"state": "OK", "reason": "", "free_mib": None}
        return {
            "state": "DEGRADED" if self._short else "OK",
            "reason": self._short,
            "free_mib": self.free() // MIB,
        }

    def _become(self, short: str) -> None:
        if short != self._short:
            self._short = short
            tell = _log.error if short else _log.info
            tell("disk_short" if short else "disk_has_room", reason=short, free_mib=self.free() // MIB)

    def _reserved(self) -> bool:
        folder = self._folder
        try:
            found = None if folder is None else (folder / RESERVE_FILE).stat()
        except FileNotFoundError:
            found = None
        # One of another size is of other settings, or was cut off while it was made.
        if found is not None and found.st_size == self._margins.reserve:
            return True
        if found is not None and folder is not None:
            (folder / RESERVE_FILE).unlink(missing_ok=True)
        return False

    def _remake(self) -> bool:
        if self._folder is None:
            return False
        path = self._folder / RESERVE_FILE
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                # Allocated, not only promised: a file with a hole would keep no room.
                if self._margins.reserve:
                    os.posix_fallocate(descriptor, 0, self._margins.reserve)
            finally:
                os.close(descriptor)
        except OSError as error:
            _log.warning("reserve_not_made", error=error.strerror)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return False
        return True
