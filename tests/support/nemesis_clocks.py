"""Wall clocks that can be set while a process runs: libfaketime, with the monotonic clock left alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LIBRARIES: Final = "/usr/lib"
_NAME: Final = "*/faketime/libfaketimeMT.so.1"


def faketime_library() -> Path | None:
    """Return libfaketime for programs with threads; None if it is not installed."""
    return next(iter(sorted(Path(_LIBRARIES).glob(_NAME))), None)


@dataclass(frozen=True, slots=True)
class Clocks:
    """One clock per daemon, each in a file that its processes read again every second."""

    folder: Path
    library: Path

    def environment(self, daemon: str) -> Mapping[str, str]:
        """Return what a daemon, and all that it starts, has in its environment."""
        self._file(daemon).touch()
        if not self._file(daemon).read_text():
            self.set(daemon, 0)
        return {
            "LD_PRELOAD": str(self.library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file(daemon)),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, daemon: str, seconds: int) -> None:
        """Set a daemon's clock ahead by ``seconds``, or back."""
        part = self._file(daemon).with_suffix(".part")
        part.write_text(f"{seconds:+d}\n")
        part.replace(self._file(daemon))

    def _file(self, daemon: str) -> Path:
        self.folder.mkdir(exist_ok=True)
        return self.folder / daemon.replace(" ", "-")
