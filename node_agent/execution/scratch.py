"""How much an execution has written.

A scratch folder lies on the node's disk, without a quota of its own: it is
measured while the run lives. A single file is bounded by the kernel besides
(RLIMIT_FSIZE), so that between two measurements a run may exceed its limit only
by what it writes in a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MAX_FILES: Final = 200_000
_MAX_DEPTH: Final = 64
_BLOCK: Final = 512


def is_within(folder: Path, max_bytes: int) -> bool:
    """Say whether what lies in ``folder`` takes at most ``max_bytes`` on disk.

    More than 200,000 files, or folders more than 64 deep, are too much whatever
    their size. Links are not followed; what vanishes meanwhile is not counted.
    """
    total = 0
    for count, used in enumerate(_sizes(folder), start=1):
        total += used
        if total > max_bytes or count > MAX_FILES:
            return False
    return True


def _sizes(folder: Path) -> Iterator[int]:
    waiting = [(str(folder), 0)]
    while waiting:
        path, depth = waiting.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    yield found.st_blocks * _BLOCK
                    if entry.is_dir(follow_symlinks=False):
                        if depth == _MAX_DEPTH:
                            yield 1 << 62
                        waiting.append((entry.path, depth + 1))
        except OSError:
            continue
