"""What the coordinator signs by itself, with its two on-line keys: which version is the newest, and that it still is.

With both keys an attacker can withhold a new version for as long as a
timestamp lasts; they can change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from hansa.contract.errors import HansaError, Reason
from hansa.trust.files import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, RepositoryFiles, metadata_name
from hansa.trust.signing import AnyRole, add_signature, file_signer, metadata_bytes

TIMESTAMP_LIFE: Final = timedelta(hours=24)
TIMESTAMP_RENEWAL: Final = timedelta(hours=1)
SNAPSHOT_LIFE: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class OnlineKeys:
    """The two keys that lie at the coordinator."""

    snapshot: Ed25519PrivateKey
    timestamp: Ed25519PrivateKey


def check_online_keys(root: bytes, keys: OnlineKeys) -> None:
    """Return if ``root`` names ``keys`` for snapshot and timestamp.

    Raises:
        HansaError: ``KEY_INVALID``, or ``TRUST_INVALID`` where ``root`` cannot be read.
    """
    roles = _root(root).roles
    for role, key in ((SNAPSHOT, keys.snapshot), (TIMESTAMP, keys.timestamp)):
        if file_signer(key).public_key.keyid not in roles[role].keyids:
            raise HansaError(Reason.KEY_INVALID, f"The {role} key is not the one that the root names.", field=role)


def make_snapshot(targets: bytes, *, version: int, key: Ed25519PrivateKey, now: datetime) -> bytes:
    """Return a snapshot that puts the targets metadata ``targets`` in force."""
    number = Metadata[Targets].from_bytes(targets).signed.version
    meta = {f"{TARGETS}.json": MetaFile.from_data(number, targets, ["sha256"])}
    return _signed(Metadata(Snapshot(version=version, expires=_expiry(now, SNAPSHOT_LIFE), meta=meta)), key)


def make_timestamp(snapshot: bytes, *, version: int, key: Ed25519PrivateKey, now: datetime) -> bytes:
    """Return a timestamp that puts ``snapshot`` in force."""
    number = Metadata[Snapshot].from_bytes(snapshot).signed.version
    meta = MetaFile.from_data(number, snapshot, ["sha256"])
    return _signed(Metadata(Timestamp(version=version, expires=_expiry(now, TIMESTAMP_LIFE), snapshot_meta=meta)), key)


def renew_online(files: RepositoryFiles, keys: OnlineKeys, now: datetime, *, ahead: int = 0) -> RepositoryFiles:
    """Return ``files`` with a timestamp of ``now``, and with a new snapshot where one is due.

    A snapshot is due when the newest targets are not those of the last one,
    when its signature is not of the newest root, or when half its life has
    passed. Versions that the newest root's keys did not sign do not count:
    that is how a repository comes back from a version that a thief set to the
    highest.

    Args:
        files: the repository.
        keys: what the newest root names.
        now: aware UTC time.
        ahead: how many versions may have been given out that ``files`` does
            not know of, because it comes from a backup; they are skipped.

    Raises:
        HansaError: ``TRUST_UNKNOWN`` (no root or no targets), ``TRUST_INVALID``,
            ``KEY_INVALID`` (the newest root names other on-line keys).
    """
    root_bytes, targets = files.metadata_file(ROOT), files.metadata_file(TARGETS)
    check_online_keys(root_bytes, keys)
    root = _root(root_bytes)
    old = _last_snapshot(files, root)
    if old is None or ahead or not _still_good(old.signed, targets, now):
        number = (1 if old is None else old.signed.version + 1) + ahead
        snapshot = make_snapshot(targets, version=number, key=keys.snapshot, now=now)
    else:
        number = old.signed.version
        snapshot = files.metadata_file(SNAPSHOT, number)
    last = _valid(files.metadata.get(metadata_name(TIMESTAMP, 0)), Timestamp, TIMESTAMP, root)
    version = (1 if last is None else last.signed.version + 1) + ahead
    timestamp = make_timestamp(snapshot, version=version, key=keys.timestamp, now=now)
    return files.merged({metadata_name(SNAPSHOT, number): snapshot, metadata_name(TIMESTAMP, 0): timestamp}, {})


def _last_snapshot(files: RepositoryFiles, root: Root) -> Metadata[Snapshot] | None:
    found = (
        _valid(data, Snapshot, SNAPSHOT, root)
        for name, data in files.metadata.items()
        if name.endswith(f".{SNAPSHOT}.json")
    )
    return max((one for one in found if one is not None), key=lambda one: one.signed.version, default=None)


def _valid(data: bytes | None, kind: type[AnyRole], role: str, root: Root) -> Metadata[AnyRole] | None:
    """Return the metadata in ``data`` if the keys of ``root`` signed it."""
    if data is None:
        return None
    try:
        metadata = Metadata[AnyRole].from_bytes(data)
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except RepositoryError:
        return None
    return metadata if isinstance(metadata.signed, kind) else None


def _still_good(snapshot: Snapshot, targets: bytes, now: datetime) -> bool:
    number = Metadata[Targets].from_bytes(targets).signed.version
    wanted = MetaFile.from_data(number, targets, ["sha256"])
    return snapshot.meta.get(f"{TARGETS}.json") == wanted and snapshot.expires - now > SNAPSHOT_LIFE / 2


def _root(data: bytes) -> Root:
    try:
        return Metadata[Root].from_bytes(data).signed
    except RepositoryError as error:
        raise HansaError(Reason.TRUST_INVALID, log=ascii(str(error))) from error


def _expiry(now: datetime, life: timedelta) -> datetime:
    return (now + life).replace(microsecond=0)


def _signed(metadata: Metadata[AnyRole], key: Ed25519PrivateKey) -> bytes:
    add_signature(metadata, file_signer(key))
    return metadata_bytes(metadata)
