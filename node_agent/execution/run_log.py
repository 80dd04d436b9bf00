"""The log of a run: what the analysis said, bounded.

An analysis may write without end. All of it is read, so that it never blocks;
the beginning and the end are kept. The file is complete up to the last write
even if the worker dies: the later half is then merely in ring order.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

LOG_BYTES: Final = 1 << 20


class RunLog:
    """Keeps the first and the last half of ``max_bytes``; the rest is counted only."""

    def __init__(self, path: Path, max_bytes: int = LOG_BYTES) -> None:
        self._file = open(path, "w+b", buffering=0, opener=_private)  # noqa: SIM115 # Path.open takes no opener
        self._half = max_bytes // 2
        self._written = 0

    def write(self, data: bytes) -> None:
        """Add ``data``."""
        head = data[: max(self._half - self._written, 0)]
        if head:
            self._file.write(head)
            self._written += len(head)
            data = data[len(head) :]
        while data:
            place = (self._written - self._half) % self._half
            part = data[: self._half - place]
            self._file.seek(self._half + place)
            self._file.write(part)
            self._written += len(part)
            data = data[len(part) :]

    @property
    def discarded(self) -> int:
        """How many bytes were not kept."""
        return max(self._written - 2 * self._half, 0)

    def close(self) -> None:
        """Put the end into order, mark the gap, close. A repeat does nothing."""
        if self._file.closed:
            return
        if self.discarded:
            place = (self._written - self._half) % self._half
            self._file.seek(self._half)
            ring = self._file.read(self._half)
            mark = f"\n[… {self.discarded} bytes discarded …]\n".encode()
            self._file.seek(self._half)
            self._file.write(mark + ring[place:] + ring[:place])
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
