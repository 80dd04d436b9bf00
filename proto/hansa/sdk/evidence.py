"""The evidence of a job: files by name, fetched from the coordinator or read from a folder.

Nothing in here is believed; ``hansa.sdk.verification`` says what the files
prove. Names have one shape each, so that none leads out of its folder.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import AsyncIterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NODE_ID
from hansa.contract.sealing import SEALED_BYTES

JOB_FILE: Final = "job.dsse.json"
RESULT_FILE: Final = "result.json"
METADATA: Final = "trust/metadata/"
TARGETS: Final = "trust/targets/"

_NODE: Final = NODE_ID.pattern
_NAME: Final = re.compile(
    rf"job\.dsse\.json|result\.json|summaries/{_NODE}\.bin|statements/{_NODE}\.dsse\.json"
    r"|trust/metadata/(?:[1-9][0-9]{0,17}\.(?:root|snapshot|targets)|timestamp)\.json|trust/targets/[0-9a-f]{64}"
    rf"|log/(?:checkpoint|entry\.json|proof\.json|{_NODE}\.checkpoint|{_NODE}\.proof\.json)"
)
_FILE_BYTES: Final = max(SEALED_BYTES, 64 << 20)
_MOST_BYTES: Final = 4 << 30
_MOST_FILES: Final = 4096
_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600


def summary_file(node: str) -> str:
    """Return the file with what a node let out: its summary, or the sealed form."""
    return f"summaries/{node}.bin"


def statement_file(node: str) -> str:
    """Return the file with a node's release statement."""
    return f"statements/{node}.dsse.json"


def is_evidence_name(name: str) -> bool:
    """Say whether a file of the evidence may have this name."""
    return _NAME.fullmatch(name) is not None


class Gathering:
    """Puts files together from chunks as they come, within bounds."""

    def __init__(self) -> None:
        self._parts: dict[str, bytearray] = {}
        self._name = ""
        self._left = _MOST_BYTES

    def add(self, name: str, chunk: bytes) -> None:
        """Take a chunk: of the file ``name``, or of the one before where that is empty.

        Raises:
            HansaError: ``EVIDENCE_INVALID``; a name that is none or came
                before, or too much.
        """
        if name:
            if not is_evidence_name(name) or name in self._parts or len(self._parts) >= _MOST_FILES:
                raise _invalid(ascii(name[:100])[1:-1], "This is not the name of a further file of the evidence.")
            self._name = name
            self._parts[name] = bytearray()
        self._left -= len(chunk)
        if not self._name or self._left < 0 or len(self._parts[self._name]) + len(chunk) > _FILE_BYTES:
            raise _invalid(self._name, "There is more than evidence may have.")
        self._parts[self._name] += chunk

    def files(self) -> dict[str, bytes]:
        """Return what has come."""
        return {name: bytes(content) for name, content in self._parts.items()}


async def gather(chunks: AsyncIterable[tuple[str, bytes]]) -> dict[str, bytes]:
    """Return the files in ``chunks`` (name, or empty to go on; content).

    Raises:
        HansaError: ``EVIDENCE_INVALID``.
    """
    gathering = Gathering()
    async for name, chunk in chunks:
        gathering.add(name, chunk)
    return gathering.files()


def write_evidence(files: Mapping[str, bytes], folder: Path) -> None:
    """Write ``files`` below ``folder``, which does not exist or is empty.

    Raises:
        HansaError: ``FILE_INVALID``.
    """
    try:
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise HansaError(Reason.FILE_INVALID, f"{folder} is not empty; evidence is never mixed.", field="folder")
        for name, content in files.items():
            if not is_evidence_name(name):
                raise _invalid(ascii(name[:100])[1:-1], "This is not the name of a file of the evidence.")
            path = folder / name
            path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
    except OSError as error:
        raise HansaError(
            Reason.FILE_INVALID, f"{folder} cannot be written: {error.strerror}.", field="folder"
        ) from error


def read_evidence(folder: Path) -> dict[str, bytes]:
    """Return the files below ``folder``.

    Raises:
        HansaError: ``EVIDENCE_INVALID``, a file that is not of the evidence, or
            too large; ``FILE_INVALID``, it cannot be read.
    """
    files: dict[str, bytes] = {}
    left = _MOST_BYTES
    try:
        if not folder.is_dir():
            raise HansaError(Reason.FILE_INVALID, f"{folder} is no folder.", field="evidence")
        for name, path in _walk(folder):
            content = _read(name, path)
            left -= len(content)
            if left < 0 or len(files) >= _MOST_FILES:
                raise _invalid(name, "There is more than evidence may have.")
            files[name] = content
    except OSError as error:
        raise HansaError(
            Reason.FILE_INVALID, f"{folder} cannot be read: {error.strerror}.", field="evidence"
        ) from error
    return files


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            yield path.relative_to(folder).as_posix(), path


def _read(name: str, path: Path) -> bytes:
    if not is_evidence_name(name):
        raise _invalid(ascii(name[:100])[1:-1], "This is not the name of a file of the evidence.")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _invalid(name, "It is not a plain file.")
        content = file.read(_FILE_BYTES + 1)
    if len(content) > _FILE_BYTES:
        raise _invalid(name, f"It is over {_FILE_BYTES} bytes.")
    return content


def _invalid(name: str, words: str) -> HansaError:
    return HansaError(Reason.EVIDENCE_INVALID, f"{name}: {words}", field=name)
