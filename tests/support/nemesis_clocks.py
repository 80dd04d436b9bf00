"""Wall clocks that can be set while processes run, with the monotonic clock left alone: a library that is preloaded.

Not libfaketime: as Debian ships it (0.9.10), ``time.sleep`` of a Python whose
monotonic clock is left alone fails with ``EINVAL``.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).with_name("clock_step.c")
# What `clock_step.c` reads: how many seconds the clock is ahead.
_AHEAD: Final = struct.Struct("=q")


def has_compiler() -> bool:
    """Say whether the library can be built here."""
    return shutil.which("cc") is not None


@dataclass(frozen=True, slots=True)
class Clocks:
    """One clock per machine, each in a file that all its processes see at once."""

    folder: Path
    # Machines whose clock was ahead for a while.
    hurried: set[str] = field(default_factory=set)

    @classmethod
    def build(cls, folder: Path) -> Clocks:
        """Build the library in ``folder``, which is made."""
        folder.mkdir()
        built = cls(folder)
        command = ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(built._library), str(_SOURCE)]
        subprocess.run(command, check=True)
        return built

    @property
    def _library(self) -> Path:
        return self.folder / "clock_step.so"

    def environment(self, machine: str) -> Mapping[str, str]:
        """Return what a daemon of ``machine``, and all that it starts, has in its environment."""
        if not self._file(machine).exists():
            self._file(machine).write_bytes(_AHEAD.pack(0))
        return {"LD_PRELOAD": str(self._library), "HANSA_TEST_CLOCK": str(self._file(machine))}

    def set(self, machine: str, seconds: int) -> None:
        """Have a machine's clock be ahead by ``seconds``; behind, if negative."""
        if seconds > 0:
            self.hurried.add(machine)
        # In place: the file is mapped.
        with self._file(machine).open("r+b", buffering=0) as file:
            file.write(_AHEAD.pack(seconds))

    def _file(self, machine: str) -> Path:
        return self.folder / f"{machine}.clock"
