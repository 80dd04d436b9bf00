"""A file system of a few MiB that a test may fill to the last byte."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

MIB = 1 << 20
_BALLAST = "ballast"


@dataclass(frozen=True)
class SmallDisk:
    """A mounted disk; ``path`` is its root."""

    path: Path

    def fill(self, leave: int = 0) -> None:
        """Take all room but ``leave`` bytes; may be repeated."""
        with (self.path / _BALLAST).open("ab") as ballast:
            while (left := self.free() - leave) > 0:
                try:
                    ballast.write(bytes(min(left, MIB)))
                    ballast.flush()
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    break

    def clear(self) -> None:
        """Give the room back."""
        (self.path / _BALLAST).unlink(missing_ok=True)

    def free(self) -> int:
        """Return how many bytes are free."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


@contextmanager
def small_disk(place: Path, mib: int) -> Iterator[SmallDisk]:
    """Mount a disk of its own at ``place``; where that is not allowed, the test is skipped."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "hansa-test", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system may be mounted here")
    try:
        yield SmallDisk(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
