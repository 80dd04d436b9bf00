"""The files of a trust repository: metadata by name, targets by digest, in memory and in a folder.

The folder's layout is the mirror's: ``metadata/<N>.<role>.json``,
``metadata/timestamp.json``, ``targets/<sha256>``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from hansa.contract.errors import HansaError, Reason
from hansa.runtime.durable import write_durably

ROOT: Final = "root"
TIMESTAMP: Final = "timestamp"
SNAPSHOT: Final = "snapshot"
TARGETS: Final = "targets"
METADATA_FOLDER: Final = "metadata"
TARGETS_FOLDER: Final = "targets"

METADATA_NAME: Final = re.compile(
    r"(?:(?P<version>[1-9][0-9]{0,17})\.(?P<role>root|snapshot|targets)|(?P<timestamp>timestamp))\.json"
)
SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}")
METADATA_BYTES: Final = 5_000_000
TARGET_BYTES: Final = 16 << 20
_MODE: Final = 0o644


class Source(Protocol):
    """Where the files of a repository come from; nothing that it gives is believed before it is verified."""

    def metadata(self, role: str, version: int, most_bytes: int) -> bytes:
        """Return a role's metadata; ``version`` is 0 for the timestamp, which has but one.

        An implementation stops reading after ``most_bytes``.

        Raises:
            HansaError: ``TRUST_UNKNOWN``, there is none;
                ``COORDINATOR_UNREACHABLE``.
        """

    def target(self, path: str, sha256: str, most_bytes: int) -> bytes:
        """Return the target whose SHA-256 (hex) is ``sha256``; ``path`` serves the log.

        Raises:
            HansaError: as ``metadata``.
        """


def metadata_name(role: str, version: int) -> str:
    """Return the name of a metadata file in a mirror."""
    return f"{TIMESTAMP}.json" if role == TIMESTAMP else f"{version}.{role}.json"


@dataclass(frozen=True, slots=True)
class RepositoryFiles:
    """Files of a repository, not verified.

    ``metadata`` has them by name (``3.targets.json``), ``targets`` by the
    SHA-256 (hex) of their content.
    """

    metadata: Mapping[str, bytes] = field(default_factory=dict)
    targets: Mapping[str, bytes] = field(default_factory=dict)

    def newest(self, role: str) -> int:
        """Return the highest version of ``role`` that is here; 0 where there is none."""
        found = (METADATA_NAME.fullmatch(name) for name in self.metadata)
        return max((int(match["version"]) for match in found if match and match["role"] == role), default=0)

    def metadata_file(self, role: str, version: int = 0) -> bytes:
        """Return a role's metadata; the newest when ``version`` is zero.

        Raises:
            HansaError: ``TRUST_UNKNOWN``.
        """
        name = metadata_name(role, version or self.newest(role))
        if name not in self.metadata:
            raise HansaError(Reason.TRUST_UNKNOWN, log=name)
        return self.metadata[name]

    def target_file(self, sha256: str) -> bytes:
        """Return the target with this digest (hex).

        Raises:
            HansaError: ``TRUST_UNKNOWN``.
        """
        if sha256 not in self.targets:
            raise HansaError(Reason.TRUST_UNKNOWN, log=ascii(sha256[:64]))
        return self.targets[sha256]

    def merged(self, metadata: Mapping[str, bytes], contents: Mapping[str, bytes]) -> RepositoryFiles:
        """Return these files and more; ``contents`` are targets by any name."""
        added = {hashlib.sha256(data).hexdigest(): data for data in contents.values()}
        return RepositoryFiles({**self.metadata, **metadata}, {**self.targets, **added})

    def write(self, folder: Path) -> None:
        """Write the files below ``folder``, the timestamp last: it puts the others in force.

        Raises:
            OSError: some were not written.
        """
        for name in (METADATA_FOLDER, TARGETS_FOLDER):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for sha256, data in self.targets.items():
            write_if_new(folder / TARGETS_FOLDER / sha256, data)
        for name in sorted(self.metadata, key=lambda name: (name == metadata_name(TIMESTAMP, 0), name)):
            write_if_new(folder / METADATA_FOLDER / name, self.metadata[name])


def write_if_new(path: Path, data: bytes) -> None:
    """Write ``data`` durably unless the file holds it already."""
    try:
        if path.read_bytes() == data:
            return
    except FileNotFoundError:
        pass
    write_durably(path, data, mode=_MODE)


def read_files(folder: Path) -> RepositoryFiles:
    """Return the files below ``folder``; other names than a mirror's are passed over.

    Raises:
        HansaError: ``FILE_INVALID``; a file is too large or cannot be read.
    """
    return RepositoryFiles(read_metadata(folder), dict(_read(folder / TARGETS_FOLDER, SHA256_HEX, TARGET_BYTES)))


def read_metadata(folder: Path) -> dict[str, bytes]:
    """Return the metadata below ``folder`` by name.

    Raises:
        HansaError: as ``read_files``.
    """
    return dict(_read(folder / METADATA_FOLDER, METADATA_NAME, METADATA_BYTES))


def _read(folder: Path, names: re.Pattern[str], most_bytes: int) -> Iterator[tuple[str, bytes]]:
    try:
        for path in sorted(folder.iterdir()):
            if names.fullmatch(path.name) and path.is_file():
                yield path.name, read_bounded(path, most_bytes)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HansaError(Reason.FILE_INVALID, f"{folder} cannot be read: {error.strerror}.", field="folder") from error


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Return the content of ``path``.

    Raises:
        HansaError: ``FILE_INVALID``; over ``most_bytes``, or unreadable.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise HansaError(Reason.FILE_INVALID, f"{path} cannot be read: {error.strerror}.", field="file") from error
    if len(data) > most_bytes:
        raise HansaError(Reason.FILE_INVALID, f"{path} is over {most_bytes} bytes.", field="file")
    return data


class FilesSource:
    """Files in memory as a ``Source``."""

    def __init__(self, files: RepositoryFiles) -> None:
        self._files = files

    def metadata(self, role: str, version: int, most_bytes: int) -> bytes:  # noqa: ARG002 - they are in memory already
        """Return a role's metadata."""
        return self._files.metadata_file(role, version)

    def target(self, path: str, sha256: str, most_bytes: int) -> bytes:  # noqa: ARG002
        """Return the target of this digest."""
        return self._files.target_file(sha256)
