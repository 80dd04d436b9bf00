"""The wish of who runs a daemon that it takes nothing new.

A file in the state folder: only who may write there can express the wish, it
outlives restarts of the daemon, and it can be expressed while none runs.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

from hansa.contract.errors import HansaError, Reason
from hansa.runtime.durable import sync_folder, write_durably

_FILE: Final = "draining"


class DrainFile:
    """The wish, as it stands in one state folder; the daemon looks whenever it matters."""

    def __init__(self, state_dir: Path) -> None:
        """Take the state folder, which exists."""
        self._path = state_dir / _FILE

    def is_set(self) -> bool:
        """Say whether nothing new is to be taken."""
        return self._path.exists()

    def since(self) -> datetime | None:
        """Return when the wish was expressed; None where it is not, or where nobody knows."""
        try:
            return datetime.fromisoformat(self._path.read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            return None

    def set(self, now: datetime) -> None:
        """Express the wish; one that stands keeps its time.

        Raises:
            OSError: it is not expressed.
        """
        if not self.is_set():
            write_durably(self._path, f"{now.isoformat()}\n".encode("ascii"))

    def keep_for(self, place: Path) -> None:
        """Have the wish stand in the folder ``place`` too, which is to take the place of this one.

        Raises:
            OSError: it does not stand there.
        """
        if self.is_set():
            write_durably(place / _FILE, self._path.read_bytes())

    def express(self, now: datetime, *, off: bool) -> None:
        """Express the wish for a command, or take it back.

        Raises:
            HansaError: ``STATE_FOLDER_INVALID``; nothing was changed.
        """
        try:
            if off:
                self.clear()
            else:
                self.set(now)
        except OSError as error:
            words = f"{self._path.parent} cannot be written: {error.strerror}."
            raise HansaError(Reason.STATE_FOLDER_INVALID, words, field="state") from error

    def clear(self) -> None:
        """Take the wish back, if there is one.

        Raises:
            OSError: it still stands.
        """
        self._path.unlink(missing_ok=True)
        sync_folder(self._path.parent)
