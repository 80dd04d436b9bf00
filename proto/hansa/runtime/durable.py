"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def write_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put ``data`` at ``path`` in one step, replacing what was there.

    The file has ``mode`` from its first moment: no one can open it in between.

    Raises:
        OSError: nothing has changed at ``path``.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        raise
    sync_folder(path.parent)


def sweep_parts(folder: Path) -> int:
    """Remove what killed writers have left in ``folder`` and below; return how many files.

    A part may hold a key. Only for a folder in which nobody writes meanwhile.
    """
    parts = [path for path in folder.rglob(".*.part") if path.is_file()]
    for part in parts:
        part.unlink(missing_ok=True)
    return len(parts)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
