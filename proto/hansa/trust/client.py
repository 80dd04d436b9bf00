"""The trust repository as a node or a person keeps it: fetched, verified, and stored for the next start.

Synchronous, because python-tuf is; whoever has an event loop calls it in a
thread. The folder has the mirror's layout. Nothing in it is believed for being
there: it is verified again from the pinned root whenever it is read.
"""

from __future__ import annotations

import fcntl
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Targets

from hansa.contract import trust_paths
from hansa.contract.directory import parse_directory
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.durable import sync_folder
from hansa.trust.files import (
    METADATA_FOLDER,
    METADATA_NAME,
    ROOT,
    TARGETS,
    TARGETS_FOLDER,
    RepositoryFiles,
    Source,
    metadata_name,
    read_bounded,
    read_files,
    read_metadata,
    write_if_new,
)
from hansa.trust.repository import KnownDirectory, make_view, verify_repository
from hansa.trust.verification import in_force, verify_metadata
from hansa.trust.view import TrustView


class TrustClient:
    """One folder with what was verified, one pinned root, one source of news.

    The methods may be called from any thread; processes that share a folder wait for each other.
    """

    def __init__(self, folder: Path, root: bytes, source: Source, *, whole: bool = True) -> None:
        """Make the client; nothing is read or fetched yet.

        Args:
            folder: private to this client; made when needed.
            root: the root metadata that was pinned.
            source: where new files come from.
            whole: fetch all files of the analyses; else only what tells which
                there are, and ``file_of`` fetches the rest when asked.
        """
        self._folder = folder
        self._root = root
        self._whole = whole
        self._source = _KeptTargets(folder / TARGETS_FOLDER, source)
        self._thread_lock = threading.Lock()

    def load(self, now: datetime) -> TrustView:
        """Return what the folder has, verified from the pinned root, without any contact.

        Raises:
            HansaError: ``TRUST_UNKNOWN`` (nothing was fetched yet), another
                ``TRUST_…``, or ``FILE_INVALID``.
        """
        with self._locked():
            files = read_files(self._folder)
        return verify_repository(files, trusted_root=self._root, now=now, whole=self._whole)

    def refresh(self, now: datetime) -> TrustView:
        """Return what the source has in force now, and keep it in the folder.

        What was in force before stays in the folder until the new state was
        verified whole; only new roots are kept at once.

        Raises:
            HansaError: ``TRUST_…``, ``DIRECTORY_INVALID``, ``FILE_INVALID``,
                or what the source raises, such as ``COORDINATOR_UNREACHABLE``.
        """
        with self._locked():
            return self._refreshed(now)

    def file_of(self, view: TrustView, sha256: str) -> bytes:
        """Return the file of an analysis of ``view`` by its SHA-256 (hex).

        Raises:
            HansaError: ``TRUST_UNKNOWN``, ``TRUST_INVALID``, or what the source raises.
        """
        path = trust_paths.blob_path(sha256)
        if view.targets.get(path) != sha256:
            raise HansaError(Reason.TRUST_UNKNOWN, log=ascii(sha256[:64]))
        with self._locked():
            return self._source.target(path, sha256, view.sizes[path])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder alone; what goes wrong with it is ``FILE_INVALID``."""
        try:
            for name in (METADATA_FOLDER, TARGETS_FOLDER):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
            with self._thread_lock, (self._folder / "lock").open("wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except TimeoutError as error:
            raise HansaError(Reason.COORDINATOR_UNREACHABLE) from error
        except OSError as error:
            raise HansaError(
                Reason.FILE_INVALID, f"{self._folder} cannot be used: {error.strerror}.", field="folder"
            ) from error

    def _refreshed(self, now: datetime) -> TrustView:
        known = in_force(read_metadata(self._folder))
        trusted = verify_metadata(self._source, root=self._root, known=known, now=now, keep_root=self._keep_root)
        view = make_view(trusted, self._source, past=self._past(known), whole=self._whole)
        RepositoryFiles(view.metadata).write(self._folder)
        self._forget(view)
        return view

    def _keep_root(self, version: int, data: bytes) -> None:
        write_if_new(self._folder / METADATA_FOLDER / metadata_name(ROOT, version), data)

    def _past(self, known: dict[str, bytes]) -> KnownDirectory | None:
        """Return the directory that was in force; None where there was none."""
        targets = next((data for name, data in known.items() if name.endswith(f".{TARGETS}.json")), None)
        if targets is None:
            return None
        try:
            info = Metadata[Targets].from_bytes(targets).signed.targets[trust_paths.DIRECTORY]
            sha256 = info.hashes["sha256"]
            data = read_bounded(self._folder / TARGETS_FOLDER / sha256, info.length)
            if hashlib.sha256(data).hexdigest() != sha256:
                return None
            return KnownDirectory(parse_directory(data).version, sha256)
        except (LookupError, RepositoryError, HansaError):
            # Somebody changed the folder by hand. The versions of the metadata still may not fall.
            return None

    def _forget(self, view: TrustView) -> None:
        """Remove what is in force no more; roots stay."""
        for path in (self._folder / METADATA_FOLDER).iterdir():
            match = METADATA_NAME.fullmatch(path.name)
            if match and match["role"] != ROOT and path.name not in view.metadata:
                path.unlink()
        wanted = set(view.targets.values())
        for path in (self._folder / TARGETS_FOLDER).iterdir():
            if path.name not in wanted:
                path.unlink()
        for name in (METADATA_FOLDER, TARGETS_FOLDER):
            sync_folder(self._folder / name)


class _KeptTargets:
    """A source whose targets are fetched once and kept by their digest."""

    def __init__(self, folder: Path, source: Source) -> None:
        self._folder = folder
        self._source = source

    def metadata(self, role: str, version: int, most_bytes: int) -> bytes:
        """Return what the source has now."""
        return self._source.metadata(role, version, most_bytes)

    def target(self, path: str, sha256: str, most_bytes: int) -> bytes:
        """Return the target of this digest, from the folder if it is there."""
        kept = self._folder / sha256
        if kept.is_file():
            data = read_bounded(kept, most_bytes)
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
        data = self._source.target(path, sha256, most_bytes)
        if len(data) > most_bytes or hashlib.sha256(data).hexdigest() != sha256:
            raise HansaError(Reason.TRUST_INVALID, log=f"{path[:200]!a} is not what was signed")
        write_if_new(kept, data)
        return data
