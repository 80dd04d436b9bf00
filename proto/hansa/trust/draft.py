"""The working folder of the key ceremony: what was signed, and what is going to be.

``metadata/`` and ``targets/`` have what a threshold has signed, in the mirror's
layout. ``draft/tree/`` has the next targets under their own paths, and
``draft/root.json`` and ``draft/targets.json`` the next metadata with the
signatures that there are. The folder holds no secret: signers pass it on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from hansa.contract import trust_paths
from hansa.contract.directory import Directory, directory_bytes, parse_directory
from hansa.contract.errors import HansaError, Reason
from hansa.contract.listing import LISTING_BYTES, parse_listing
from hansa.runtime.durable import write_durably
from hansa.trust.bundles import SignedBundle
from hansa.trust.edits import changed
from hansa.trust.files import (
    METADATA_BYTES,
    ROOT,
    TARGET_BYTES,
    TARGETS,
    RepositoryFiles,
    metadata_name,
    read_bounded,
    read_metadata,
)
from hansa.trust.signing import AnyRole, metadata_bytes

_MODE: Final = 0o644


class Draft:
    """One working folder. Every method may raise ``HansaError`` ``FILE_INVALID``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tree = folder / "draft" / "tree"

    def exists(self) -> bool:
        """Say whether the folder is one."""
        return (self._tree / trust_paths.DIRECTORY).is_file()

    def check(self) -> None:
        """Return if the folder is a working folder.

        Raises:
            HansaError: ``FILE_INVALID``.
        """
        if not self.exists():
            raise HansaError(
                Reason.FILE_INVALID, f"{self.folder} is no trust repository; see `hansa trust init`.", field="repo"
            )

    # --- the next targets -------------------------------------------------------------------

    @property
    def directory(self) -> Directory:
        """The directory of the draft."""
        return parse_directory(self._read(trust_paths.DIRECTORY))

    def edit(self, change: Callable[[Directory], Directory]) -> Directory:
        """Put what ``change`` makes of the directory into the draft, with the version that is next."""
        published = self.published_directory()
        following = change(self.directory)
        number = 1 if published is None else published.version
        following = changed(following, version=number)
        if published is not None and following != published:
            following = changed(following, version=number + 1)
        self._write(trust_paths.DIRECTORY, directory_bytes(following))
        return following

    def start(self, directory: Directory) -> None:
        """Write the first directory of a new folder."""
        self._write(trust_paths.DIRECTORY, directory_bytes(directory))

    def stage(self, bundle: SignedBundle) -> None:
        """Put a bundle into the draft; one of that name and version that was there is gone."""
        ref = bundle.ref
        self.unstage(ref.name, ref.version, missing_ok=True)
        for path, data in bundle.targets().items():
            self._write(path, data)
        self._sweep()

    def unstage(self, name: str, version: str, *, missing_ok: bool = False) -> None:
        """Take a bundle out of the draft.

        Raises:
            HansaError: ``ANALYSIS_UNKNOWN``.
        """
        folder = (self._tree / trust_paths.bundle_path(name, version)).parent
        if folder.is_dir():
            shutil.rmtree(folder)
            self._sweep()
        elif not missing_ok:
            raise HansaError(Reason.ANALYSIS_UNKNOWN, f"The draft has no analysis {name}@{version}.", field="analysis")

    def contents(self) -> dict[str, bytes]:
        """Return the next targets by path."""
        found = {}
        for path in sorted(self._tree.rglob("*")):
            if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                found[path.relative_to(self._tree).as_posix()] = read_bounded(path, TARGET_BYTES)
        return found

    def _sweep(self) -> None:
        """Remove the blobs that no bundle of the draft lists."""
        wanted = set()
        for path in self._tree.glob("analyses/*/*/bundle.json"):
            wanted |= {listed.sha256 for listed in parse_listing(read_bounded(path, LISTING_BYTES)).values()}
        for blob in self._tree.glob("blobs/*"):
            if blob.name not in wanted:
                blob.unlink()

    def _read(self, path: str) -> bytes:
        self.check()
        return read_bounded(self._tree / path, TARGET_BYTES)

    def _write(self, path: str, data: bytes) -> None:
        place = self._tree / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_durably(place, data, mode=_MODE)
        except OSError as error:
            raise _unwritable(place, error) from error

    # --- metadata ---------------------------------------------------------------------------

    def signed(self) -> RepositoryFiles:
        """Return what thresholds have signed: all roots, the newest targets metadata, and its targets."""
        files = RepositoryFiles(read_metadata(self.folder))
        number = files.newest(TARGETS)
        wanted = {name: data for name, data in files.metadata.items() if name.endswith(f".{ROOT}.json")}
        targets: dict[str, bytes] = {}
        if number:
            wanted[metadata_name(TARGETS, number)] = files.metadata_file(TARGETS)
            for info in _parsed(files.metadata_file(TARGETS), Targets).signed.targets.values():
                sha256 = info.hashes["sha256"]
                targets[sha256] = read_bounded(self.folder / "targets" / sha256, TARGET_BYTES)
        return RepositoryFiles(wanted, targets)

    def root(self) -> Metadata[Root] | None:
        """Return the newest root that is in force; None before the first."""
        files = RepositoryFiles(read_metadata(self.folder))
        return _parsed(files.metadata_file(ROOT), Root) if files.newest(ROOT) else None

    def targets(self) -> Metadata[Targets] | None:
        """Return the newest targets metadata that is in force; None before the first."""
        files = RepositoryFiles(read_metadata(self.folder))
        return _parsed(files.metadata_file(TARGETS), Targets) if files.newest(TARGETS) else None

    def published_directory(self) -> Directory | None:
        """Return the directory that was last signed; None before the first."""
        targets = self.targets()
        info = None if targets is None else targets.signed.targets.get(trust_paths.DIRECTORY)
        if info is None:
            return None
        return parse_directory(read_bounded(self.folder / "targets" / info.hashes["sha256"], TARGET_BYTES))

    def next_root(self) -> Metadata[Root] | None:
        """Return the root that is being signed; None where none is."""
        return self._pending(ROOT, Root)

    def next_targets(self) -> Metadata[Targets] | None:
        """Return the targets metadata that is being signed; None where none is."""
        return self._pending(TARGETS, Targets)

    def _pending(self, role: str, kind: type[AnyRole]) -> Metadata[AnyRole] | None:
        path = self.folder / "draft" / f"{role}.json"
        return _parsed(read_bounded(path, METADATA_BYTES), kind) if path.is_file() else None

    def keep_pending(self, role: str, metadata: Metadata[AnyRole] | None) -> None:
        """Write the metadata of ``role`` that is being signed; None removes it."""
        path = self.folder / "draft" / f"{role}.json"
        try:
            if metadata is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_durably(path, metadata_bytes(metadata), mode=_MODE)
        except OSError as error:
            raise _unwritable(path, error) from error

    def complete(self, role: str, metadata: Metadata[AnyRole], contents: Mapping[str, bytes]) -> None:
        """Put signed ``metadata`` of ``role`` and its targets' ``contents`` beside what was signed before."""
        name = metadata_name(role, metadata.signed.version)
        files = RepositoryFiles().merged({name: metadata_bytes(metadata)}, contents)
        try:
            files.write(self.folder)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        self.keep_pending(role, None)


def _parsed(data: bytes, kind: type[AnyRole]) -> Metadata[AnyRole]:
    try:
        metadata = Metadata[AnyRole].from_bytes(data)
    except RepositoryError as error:
        raise HansaError(Reason.TRUST_INVALID, log=ascii(str(error))) from error
    if not isinstance(metadata.signed, kind):
        raise HansaError(Reason.TRUST_INVALID, f"This is not metadata of the role {kind.type}.")
    return metadata


def _unwritable(path: Path, error: OSError) -> HansaError:
    return HansaError(Reason.FILE_INVALID, f"{path} cannot be written: {error.strerror}.", field="repo")
