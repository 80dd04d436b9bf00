"""The analyses that this node may run: approved in the trust that is in force, and whole on its disk.

A bundle lies in ``analyses/<digest>/`` of the state folder, read-only, under
the digest that its reviewers' votes are on. Only that name counts: what was
approved once and is no longer, is on the disk and is not run.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from hansa.contract.errors import HansaError, Reason
from hansa.contract.manifest import Manifest, parse_manifest
from hansa.sdk.bundle import load_bundle
from hansa.trust.view import TrustedAnalysis, TrustView
from node_agent.durable import sync_folder, write_durably

_log = structlog.get_logger(__name__)

_FOLDER_MODE: Final = 0o555
_FILE_MODE: Final = 0o444
_PART: Final = ".part-"


@dataclass(frozen=True, slots=True)
class InstalledAnalysis:
    """An analysis bundle on this node's disk."""

    manifest: Manifest
    digest: str
    folder: Path

    @property
    def key(self) -> str:
        """``name@version``, as policies write it."""
        return f"{self.manifest.name}@{self.manifest.version}"


# Returns the content of a bundle's file by its path in the repository's bundle and its SHA-256 (hex); blocking.
ReadFile = Callable[[str, str], bytes]


@dataclass(frozen=True, slots=True)
class Catalogue(Mapping[str, InstalledAnalysis]):
    """What may run now, by ``name@version``. Reads follow the trust in force at once."""

    folder: Path
    trust: Callable[[], TrustView | None]
    # By digest; a digest's content never changes.
    _whole: dict[str, InstalledAnalysis] = field(default_factory=dict)

    def __getitem__(self, key: str) -> InstalledAnalysis:
        """Return the analysis; KeyError if it is not approved, or not here."""
        view = self.trust()
        approved = None if view is None else view.analyses.get(key)
        if approved is None or not approved.count.approved:
            raise KeyError(key)
        return self._whole[approved.digest]

    def __iter__(self) -> Iterator[str]:
        """Yield the keys of what may run."""
        view = self.trust()
        for key in () if view is None else sorted(view.analyses):
            if key in self:
                yield key

    def __len__(self) -> int:
        """Return how many analyses may run."""
        return sum(1 for _ in self)

    def install(self, view: TrustView, read: ReadFile) -> None:
        """Have every approved analysis of ``view`` on the disk. Blocking.

        One that cannot be had is logged and left out: it is not admitted until
        a later call succeeds.

        Args:
            view: a verified view.
            read: returns a file of the verified repository.
        """
        self._sweep()
        for analysis in view.analyses.values():
            if not analysis.count.approved or analysis.digest in self._whole:
                continue
            try:
                self._whole[analysis.digest] = self._installed(analysis, read)
            except (HansaError, OSError) as error:
                _log.error("analysis_not_installed", analysis=analysis.key, detail=str(error))

    def _installed(self, analysis: TrustedAnalysis, read: ReadFile) -> InstalledAnalysis:
        place = place_of(self.folder, analysis.digest)
        if place.is_dir():
            try:
                return checked(place, analysis.digest)
            except HansaError as error:
                _log.error("analysis_damaged", analysis=analysis.key, detail=str(error))
                _remove(place)
        self._write(analysis, place, read)
        return checked(place, analysis.digest)

    def _write(self, analysis: TrustedAnalysis, place: Path, read: ReadFile) -> None:
        part = self.folder / f"{_PART}{secrets.token_hex(8)}"
        part.mkdir(mode=0o700)
        for path, sha256 in sorted(analysis.files.items()):
            content = read(path, sha256)
            if hashlib.sha256(content).hexdigest() != sha256:
                raise HansaError(Reason.TRUST_INVALID, log=f"{analysis.key}: {path} is another file")
            target = part / path
            target.parent.mkdir(parents=True, exist_ok=True)
            write_durably(target, content, mode=_FILE_MODE)
        checked(part, analysis.digest)
        for folder in sorted((one for one in part.rglob("*") if one.is_dir()), reverse=True):
            sync_folder(folder)
            folder.chmod(_FOLDER_MODE)
        sync_folder(part)
        part.rename(place)
        place.chmod(_FOLDER_MODE)
        sync_folder(self.folder)
        _log.info("analysis_installed", analysis=analysis.key, digest=analysis.digest)

    def _sweep(self) -> None:
        """Remove what a crash has left of bundles that were being written."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for part in self.folder.glob(f"{_PART}*"):
            _remove(part)


def approved_digests(catalogue: Mapping[str, InstalledAnalysis]) -> dict[str, str]:
    """Return the digests of what may run, by ``name@version``."""
    return {key: analysis.digest for key, analysis in catalogue.items()}


def place_of(folder: Path, digest: str) -> Path:
    """Return where the bundle of ``digest`` lies."""
    return folder / digest.removeprefix("sha256:")


def checked(place: Path, digest: str) -> InstalledAnalysis:
    """Return the bundle at ``place`` if every file of it is as its reviewers saw it.

    Raises:
        HansaError: ``TRUST_INVALID``; it is another. ``FILE_INVALID``,
            ``MANIFEST_INVALID``.
    """
    bundle = load_bundle(place)
    if bundle.digest != digest:
        raise HansaError(Reason.TRUST_INVALID, "An installed analysis was changed.", log=f"{place}: {bundle.digest}")
    return InstalledAnalysis(parse_manifest(bundle.manifest_bytes), digest, place)


def is_sound(analysis: InstalledAnalysis) -> bool:
    """Say whether the bundle on the disk is still what its digest names. Reads all of it."""
    try:
        checked(analysis.folder, analysis.digest)
    except HansaError as error:
        _log.error("analysis_damaged", analysis=analysis.key, detail=str(error))
        return False
    return True


def _remove(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
