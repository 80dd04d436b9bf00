"""What a verified repository says: the directory, and the analyses with their votes counted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from tuf.api import exceptions
from tuf.api.metadata import TargetFile

from hansa.contract import trust_paths
from hansa.contract.directory import DIRECTORY_BYTES, Directory, parse_directory
from hansa.contract.envelope import ENVELOPE_BYTES, Signed, from_json
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import AnalysisRef
from hansa.contract.limits import MANIFEST_BYTES
from hansa.contract.listing import LISTING_BYTES, MANIFEST_FILE, ListedFile, parse_listing
from hansa.contract.manifest import parse_manifest
from hansa.contract.review import count_votes
from hansa.trust.files import TARGET_BYTES, FilesSource, RepositoryFiles, Source
from hansa.trust.verification import Trusted, refusal_of, verify_metadata
from hansa.trust.view import TrustedAnalysis, TrustView

_log = structlog.get_logger(__name__)

_NO_AUTHORSHIP: Final = Signed("", b"", "", b"")
# Of one analysis, which is then not there; anything else is of the whole repository.
_OF_ONE_ANALYSIS: Final = frozenset(
    {
        Reason.ENVELOPE_INVALID,
        Reason.MANIFEST_INVALID,
        Reason.TRUST_INVALID,
        Reason.TRUST_UNKNOWN,
    }
)


@dataclass(frozen=True, slots=True)
class KnownDirectory:
    """The directory that was in force before; ``sha256`` (hex) is of its bytes."""

    version: int
    sha256: str


def verify_repository(
    files: RepositoryFiles,
    *,
    trusted_root: bytes,
    now: datetime,
    previous: TrustView | None = None,
    whole: bool = True,
) -> TrustView:
    """Return what ``files`` say, verified from the pinned root on.

    Args:
        files: a whole repository, of which nothing is believed.
        trusted_root: the root metadata that the caller pinned.
        now: aware UTC time.
        previous: the view in force before; nothing in ``files`` may be older.
        whole: as ``make_view``.

    Raises:
        HansaError: ``TRUST_…`` or ``DIRECTORY_INVALID``. A bundle that cannot
            be used is left out and logged.
    """
    source = FilesSource(files)
    known: Mapping[str, bytes] = {} if previous is None else previous.metadata
    trusted = verify_metadata(source, root=trusted_root, known=known, now=now)
    past = None if previous is None else KnownDirectory(previous.directory.version, previous.directory_sha256)
    return make_view(trusted, source, past=past, whole=whole)


def make_view(trusted: Trusted, source: Source, *, past: KnownDirectory | None, whole: bool = True) -> TrustView:
    """Return what the targets of ``trusted`` say.

    Args:
        trusted: the verified metadata.
        source: where the targets lie; each is compared with its digest.
        past: the directory in force before.
        whole: every file of an analysis must be there for it to count; else
            the manifest suffices.

    Raises:
        HansaError: as ``verify_repository``.
    """
    reader = _Reader(trusted, source)
    directory, sha256 = _directory(reader, past)
    analyses = {}
    for path in sorted(trusted.targets.targets):
        if (found := trust_paths.analysis_of(path)) is not None:
            name, version = found
            try:
                analysis = _analysis(reader, directory, name, version, whole=whole)
            except HansaError as error:
                if error.reason not in _OF_ONE_ANALYSIS:
                    raise
                _log.warning("trust_analysis_unusable", name=name, version=version, reason=error.reason, why=str(error))
                continue
            analyses[analysis.key] = analysis
    return TrustView(
        root_version=trusted.root.version,
        targets_version=trusted.targets.version,
        snapshot_version=trusted.snapshot.version,
        timestamp_version=trusted.timestamp.version,
        expires=trusted.expires,
        directory=directory,
        analyses=analyses,
        directory_sha256=sha256,
        targets={path: info.hashes.get("sha256", "") for path, info in trusted.targets.targets.items()},
        sizes={path: info.length for path, info in trusted.targets.targets.items()},
        metadata=trusted.metadata,
    )


class _Reader:
    """Reads targets; what does not match the signed metadata is not returned."""

    def __init__(self, trusted: Trusted, source: Source) -> None:
        self.paths: Mapping[str, TargetFile] = trusted.targets.targets
        self._source = source

    def read(self, path: str, most_bytes: int) -> bytes:
        """Return the content of the target ``path``.

        Raises:
            HansaError: ``TRUST_UNKNOWN``, ``TRUST_INVALID``, or the source's own.
        """
        info = self.paths.get(path)
        if info is None:
            raise HansaError(Reason.TRUST_UNKNOWN, log=ascii(path[:200]))
        if info.length > most_bytes or "sha256" not in info.hashes:
            raise HansaError(Reason.TRUST_INVALID, log=f"{path[:200]!a} is too long or has no SHA-256")
        data = self._source.target(path, info.hashes["sha256"], info.length)
        try:
            info.verify_length_and_hashes(data)
        except exceptions.LengthOrHashMismatchError as error:
            raise refusal_of(error) from error
        return data

    def blob(self, listed: ListedFile) -> TargetFile:
        """Return the target that holds a listed file.

        Raises:
            HansaError: ``TRUST_UNKNOWN``; there is none of its digest and size.
        """
        info = self.paths.get(trust_paths.blob_path(listed.sha256))
        if info is None or (info.hashes.get("sha256"), info.length) != (listed.sha256, listed.size):
            raise HansaError(Reason.TRUST_UNKNOWN, log=f"blob {listed.sha256}")
        return info


def _directory(reader: _Reader, past: KnownDirectory | None) -> tuple[Directory, str]:
    data = reader.read(trust_paths.DIRECTORY, DIRECTORY_BYTES)
    directory, sha256 = parse_directory(data), hashlib.sha256(data).hexdigest()
    if past is not None and sha256 != past.sha256 and directory.version <= past.version:
        raise HansaError(
            Reason.TRUST_ROLLBACK,
            f"The directory has changed, but its version {directory.version} is not above {past.version}.",
        )
    return directory, sha256


def _analysis(reader: _Reader, directory: Directory, name: str, version: str, *, whole: bool) -> TrustedAnalysis:
    listing = reader.read(trust_paths.bundle_path(name, version), LISTING_BYTES)
    files = parse_listing(listing)
    for path, listed in files.items():
        target = reader.blob(listed)
        if whole or path == MANIFEST_FILE:
            reader.read(target.path, TARGET_BYTES)
    manifest_bytes = reader.read(trust_paths.blob_path(files[MANIFEST_FILE].sha256), MANIFEST_BYTES)
    manifest = parse_manifest(manifest_bytes)
    if (manifest.name, manifest.version) != (name, version) or manifest.snakefile not in files:
        raise HansaError(Reason.MANIFEST_INVALID, "The manifest is of another analysis, or has no Snakefile.")
    ref = AnalysisRef(name=name, version=version, digest=f"sha256:{hashlib.sha256(listing).hexdigest()}")
    return TrustedAnalysis(
        name=name,
        version=version,
        digest=ref.digest,
        manifest=manifest_bytes,
        files={path: listed.sha256 for path, listed in files.items()},
        count=count_votes(
            directory, ref, authorship=_authorship(reader, name, version), votes=_votes(reader, name, version)
        ),
    )


def _authorship(reader: _Reader, name: str, version: str) -> Signed:
    path = trust_paths.authorship_path(name, version)
    return _envelope(reader, path) or _NO_AUTHORSHIP


def _votes(reader: _Reader, name: str, version: str) -> list[Signed]:
    pattern = trust_paths.votes_of(name, version)
    found = (_envelope(reader, path) for path in sorted(reader.paths) if pattern.fullmatch(path))
    return [signed for signed in found if signed is not None]


def _envelope(reader: _Reader, path: str) -> Signed | None:
    """Return the envelope at ``path``; None where there is none, or none that can be read."""
    if path not in reader.paths:
        return None
    try:
        return from_json(reader.read(path, ENVELOPE_BYTES))
    except HansaError as error:
        if error.reason is not Reason.ENVELOPE_INVALID:
            raise
        _log.warning("trust_envelope_unusable", path=path, why=str(error))
        return None
