"""Verification of a trust repository's metadata: python-tuf's client workflow, and Hansa's own words for its refusals."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.signer import KEY_TYPE_ED25519, Key
from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from hansa.contract.errors import HansaError, Reason
from hansa.trust.files import METADATA_NAME, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Source, metadata_name

_BASE: Final = "repository:/"
_ED25519_HEX: Final = re.compile(r"[0-9a-f]{64}")
_MOST: Final = 5_000_000


@dataclass(frozen=True, slots=True)
class Trusted:
    """Metadata that was verified from the pinned root on; ``metadata`` has the bytes by name."""

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    metadata: Mapping[str, bytes]

    @property
    def expires(self) -> datetime:
        """The earliest expiry of the four roles."""
        return min(role.expires for role in (self.root, self.timestamp, self.snapshot, self.targets))


def verify_metadata(
    source: Source,
    *,
    root: bytes,
    known: Mapping[str, bytes],
    now: datetime,
    keep_root: Callable[[int, bytes], None] = lambda _version, _data: None,
) -> Trusted:
    """Return the metadata that ``source`` has in force.

    Args:
        source: whence; not believed.
        root: the root metadata that the caller pinned.
        known: the metadata that was in force before, by name; older is a rollback.
        now: aware UTC time.
        keep_root: called with each new root as soon as the one before vouches
            for it; it stays in force whatever comes after.

    Raises:
        HansaError: ``TRUST_INVALID``, ``TRUST_EXPIRED``, ``TRUST_ROLLBACK``,
            ``TRUST_THRESHOLD``, ``TRUST_UNKNOWN`` (the source lacks a file
            that it announced), and whatever else ``source`` raises.
    """
    with tempfile.TemporaryDirectory(prefix="hansa-trust-") as name:
        _lay_out(Path(name), known)
        try:
            workflow = _Workflow(Path(name), source, root, now, keep_root)
            workflow.refresh()
            return workflow.trusted()
        except (exceptions.RepositoryError, exceptions.DownloadError, ValueError) as error:
            raise refusal_of(error) from error


def refusal_of(error: Exception) -> HansaError:
    """Return what an exception of python-tuf means in Hansa."""
    text = ascii(str(error))[1:-1][:300]
    match error:
        case exceptions.ExpiredMetadataError():
            return HansaError(Reason.TRUST_EXPIRED, log=text)
        case exceptions.BadVersionNumberError():
            return HansaError(Reason.TRUST_ROLLBACK, log=text)
        case exceptions.UnsignedMetadataError():
            return HansaError(Reason.TRUST_THRESHOLD, log=text)
        case exceptions.DownloadHTTPError():
            return HansaError(Reason.TRUST_UNKNOWN, log=text)
    return HansaError(Reason.TRUST_INVALID, log=text)


def in_force(metadata: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return, of a mirror's metadata, the roots and what the timestamp puts in force.

    Nothing is verified; what cannot be read is left out.
    """
    found = {name: data for name, data in metadata.items() if name.endswith(f".{ROOT}.json")}
    try:
        timestamp = Metadata[Timestamp].from_bytes(metadata[metadata_name(TIMESTAMP, 0)])
        found[metadata_name(TIMESTAMP, 0)] = metadata[metadata_name(TIMESTAMP, 0)]
        name = metadata_name(SNAPSHOT, timestamp.signed.snapshot_meta.version)
        snapshot = Metadata[Snapshot].from_bytes(metadata[name])
        found[name] = metadata[name]
        name = metadata_name(TARGETS, snapshot.signed.meta[f"{TARGETS}.json"].version)
        found[name] = metadata[name]
    except (LookupError, exceptions.RepositoryError):
        pass
    return found


def key_identity(key: Key) -> bytes:
    """Return what makes a public key this one, however it is written.

    Raises:
        tuf.api.exceptions.RepositoryError: it is no key that could be used.
    """
    public = str(key.keyval.get("public"))
    try:
        if key.keytype == KEY_TYPE_ED25519:
            if not _ED25519_HEX.fullmatch(public):
                raise ValueError("not 64 hexadecimal digits")
            return bytes.fromhex(public)
        return load_pem_public_key(public.encode()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError as error:
        raise exceptions.RepositoryError(f"a root names a key that cannot be used: {error}") from error


def check_root(root: Root) -> None:
    """Return if each threshold of ``root`` is one of different keys.

    python-tuf counts key ids, and one key may have several; a threshold is of
    people.

    Raises:
        tuf.api.exceptions.RepositoryError: it is not.
    """
    if not root.consistent_snapshot:
        raise exceptions.RepositoryError("the root does not ask for consistent snapshots")
    identities = {keyid: key_identity(key) for keyid, key in root.keys.items()}
    for role in root.roles.values():
        keys = [identities[keyid] for keyid in role.keyids]
        if len(set(keys)) != len(keys):
            raise exceptions.RepositoryError("a role of the root counts one key twice")


def _limits() -> UpdaterConfig:
    return UpdaterConfig(
        max_root_rotations=256,
        root_max_length=512_000,
        timestamp_max_length=16 << 10,
        snapshot_max_length=64 << 10,
        targets_max_length=_MOST,
    )


class _Workflow(Updater):
    """The client workflow of the TUF specification, at a given time."""

    def __init__(
        self, folder: Path, source: Source, root: bytes, now: datetime, keep_root: Callable[[int, bytes], None]
    ) -> None:
        self._keep_root = keep_root
        super().__init__(str(folder), _BASE, fetcher=_Fetcher(source), config=_limits(), bootstrap=root)
        self._trusted_set.reference_time = now
        self._pinned = self._trusted_set.root.version

    def _persist_root(self, version: int, data: bytes) -> None:
        check_root(self._trusted_set.root)
        super()._persist_root(version, data)
        self._keep_root(version, data)

    def trusted(self) -> Trusted:
        """Return what ``refresh`` has verified."""
        found = self._trusted_set
        metadata = {
            metadata_name(TIMESTAMP, 0): self._load_local_metadata(TIMESTAMP),
            metadata_name(SNAPSHOT, found.snapshot.version): self._load_local_metadata(SNAPSHOT),
            metadata_name(TARGETS, found.targets.version): self._load_local_metadata(TARGETS),
        }
        for path in Path(self._dir, "root_history").iterdir():
            match = METADATA_NAME.fullmatch(path.name)
            if match and self._pinned <= int(match["version"]) <= found.root.version:
                metadata[path.name] = path.read_bytes()
        return Trusted(found.root, found.timestamp, found.snapshot, found.targets, metadata)


class _Fetcher(FetcherInterface):
    """Asks a ``Source`` for metadata, by the names that the workflow makes."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        return iter((self._read(url, _MOST),))

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return what lies at ``url``, with the bound known to the source."""
        data = self._read(url, max_length)
        if len(data) > max_length:
            raise exceptions.DownloadLengthMismatchError(f"over {max_length} bytes")
        return data

    def _read(self, url: str, most_bytes: int) -> bytes:
        match = METADATA_NAME.fullmatch(url.removeprefix(_BASE))
        if match is None:
            raise exceptions.DownloadHTTPError("no such role", 404)
        try:
            return self._source.metadata(match["role"] or TIMESTAMP, int(match["version"] or 0), most_bytes)
        except HansaError as error:
            if error.reason is not Reason.TRUST_UNKNOWN:
                raise
            raise exceptions.DownloadHTTPError(f"no {match[0]}", 404) from error


def _lay_out(folder: Path, known: Mapping[str, bytes]) -> None:
    """Write ``known`` as the workflow keeps it: roots by version, the other roles without."""
    (folder / "root_history").mkdir()
    for name, data in in_force(known).items():
        match = METADATA_NAME.fullmatch(name)
        if match is not None and match["role"] == ROOT:
            (folder / "root_history" / name).write_bytes(data)
        elif match is not None:
            (folder / f"{match['role'] or TIMESTAMP}.json").write_bytes(data)
