"""New metadata of the roles that sign off-line, and the signatures on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, Role, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from hansa.contract.errors import HansaError, Reason
from hansa.trust.files import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from hansa.trust.verification import check_root, key_identity

# Fields of Hansa's own in a root: who holds a key, and how long its signers make metadata last.
HOLDER: Final = "x-hansa-holder"
LIFE_DAYS: Final = "x-hansa-life-days"
ROOT_LIFE: Final = timedelta(days=365)
TARGETS_LIFE: Final = timedelta(days=183)

AnyRole = TypeVar("AnyRole", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, slots=True, kw_only=True)
class RootPlan:
    """Who signs what, and for how long."""

    root_keys: Sequence[Key]
    root_threshold: int
    targets_keys: Sequence[Key]
    targets_threshold: int
    snapshot_key: Key
    timestamp_key: Key
    root_life: timedelta = ROOT_LIFE
    targets_life: timedelta = TARGETS_LIFE


def role_key(public: PublicKeyTypes, holder: str) -> Key:
    """Return a public key for a role, with the name of who holds it.

    Raises:
        HansaError: ``KEY_INVALID``; not Ed25519, ECDSA or RSA.
    """
    try:
        key = SSlibKey.from_crypto(public)
    except ValueError as error:
        raise HansaError(Reason.KEY_INVALID, f"The key of {holder[:64]!a} is of no kind that can sign.") from error
    key.unrecognized_fields[HOLDER] = holder
    return key


def file_signer(key: Ed25519PrivateKey) -> Signer:
    """Return a signer with a key that this process holds."""
    return CryptoSigner(key)


def uri_signer(uri: str, key: Key, ask: Callable[[str], str]) -> Signer:
    """Return a signer whose key is in a device, a key service, or a file, as securesystemslib finds it.

    Args:
        uri: such as ``hsm:…`` (PKCS#11) or ``awskms:…``.
        key: the public half, as the root has it.
        ask: asks a person for a PIN or a passphrase by its name.

    Raises:
        HansaError: ``KEY_INVALID``.
    """
    try:
        return Signer.from_priv_key_uri(uri, key, ask)
    except Exception as error:  # devices, drivers and services raise what they like
        raise HansaError(
            Reason.KEY_INVALID,
            f"The signer cannot be used: {type(error).__name__}.",
            field="uri",
            log=ascii(str(error)),
        ) from error


def plan_changed(plan: RootPlan, changes: Mapping[str, Any]) -> RootPlan:
    """Return ``plan`` with ``changes``.

    Args:
        plan: the root before.
        changes: ``add_root_key`` (keys), ``remove_root_key`` (names of
            holders), ``root_threshold``, the same for targets, ``snapshot_key``
            and ``timestamp_key``; what is None or empty stays.

    Raises:
        HansaError: ``KEY_INVALID``; a key to remove is not there.
    """
    made: dict[str, Any] = {}
    for role, keys in ((ROOT, plan.root_keys), (TARGETS, plan.targets_keys)):
        left = _without(keys, changes[f"remove_{role}_key"], role)
        made[f"{role}_keys"] = [*left, *changes[f"add_{role}_key"]]
    for name in ("root_threshold", "targets_threshold", "snapshot_key", "timestamp_key"):
        if changes[name] is not None:
            made[name] = changes[name]
    return replace(plan, **made)


def _without(keys: Sequence[Key], holders: Sequence[str], role: str) -> list[Key]:
    for holder in holders:
        if not any(holder in {holder_of(key), key.keyid} for key in keys):
            raise HansaError(Reason.KEY_INVALID, f"The role {role} has no key of {holder[:64]!a}.", field="key")
    return [key for key in keys if not {holder_of(key), key.keyid} & set(holders)]


def holder_of(key: Key) -> str:
    """Return the name of who holds ``key``."""
    return str(key.unrecognized_fields.get(HOLDER, key.keyid[:12]))


def new_root(plan: RootPlan, *, version: int, now: datetime) -> Metadata[Root]:
    """Return a root of ``plan``, without signatures.

    Raises:
        HansaError: ``TRUST_INVALID``; a threshold that cannot be met, a key
            that counts twice, or an on-line key among the off-line ones.
    """
    online = {key_identity(plan.snapshot_key), key_identity(plan.timestamp_key)}
    offline = [key_identity(key) for key in (*plan.root_keys, *plan.targets_keys)]
    if len(online) != 2 or online & set(offline):  # noqa: PLR2004 - snapshot and timestamp
        raise _invalid("Snapshot and timestamp each have a key of their own that serves nothing else.")
    roles = {
        ROOT: _role(ROOT, plan.root_keys, plan.root_threshold),
        TARGETS: _role(TARGETS, plan.targets_keys, plan.targets_threshold),
        SNAPSHOT: _role(SNAPSHOT, [plan.snapshot_key], 1),
        TIMESTAMP: _role(TIMESTAMP, [plan.timestamp_key], 1),
    }
    every = (*plan.root_keys, *plan.targets_keys, plan.snapshot_key, plan.timestamp_key)
    root = Root(
        version=version,
        expires=_whole(now + plan.root_life),
        keys={key.keyid: key for key in every},
        roles=roles,
        consistent_snapshot=True,
        unrecognized_fields={LIFE_DAYS: {ROOT: plan.root_life.days, TARGETS: plan.targets_life.days}},
    )
    try:
        check_root(root)
    except RepositoryError as error:
        raise _invalid(f"{error}".capitalize() + ".") from error
    return Metadata(root)


def _role(name: str, keys: Sequence[Key], threshold: int) -> Role:
    if not 1 <= threshold <= len(keys):
        raise _invalid(f"The threshold of {name} is {threshold}, but it has {len(keys)} keys.")
    if len({key.keyid for key in keys}) != len(keys):
        raise _invalid(f"A key of {name} is given twice.")
    return Role([key.keyid for key in keys], threshold)


def plan_of(root: Root) -> RootPlan:
    """Return the plan that ``root`` carries out."""
    days = root.unrecognized_fields.get(LIFE_DAYS, {})

    def keys(role: str) -> list[Key]:
        return [root.keys[keyid] for keyid in root.roles[role].keyids]

    return RootPlan(
        root_keys=keys(ROOT),
        root_threshold=root.roles[ROOT].threshold,
        targets_keys=keys(TARGETS),
        targets_threshold=root.roles[TARGETS].threshold,
        snapshot_key=keys(SNAPSHOT)[0],
        timestamp_key=keys(TIMESTAMP)[0],
        root_life=timedelta(days=days.get(ROOT, ROOT_LIFE.days)),
        targets_life=timedelta(days=days.get(TARGETS, TARGETS_LIFE.days)),
    )


def new_targets(contents: Mapping[str, bytes], *, version: int, expires: datetime) -> Metadata[Targets]:
    """Return targets metadata over ``contents`` (by path), without signatures."""
    targets = {path: TargetFile.from_data(path, data, ["sha256"]) for path, data in contents.items()}
    return Metadata(Targets(version=version, expires=_whole(expires), targets=targets))


def metadata_bytes(metadata: Metadata[AnyRole]) -> bytes:
    """Return the file that is published."""
    return metadata.to_bytes(JSONSerializer(compact=False))


def add_signature(metadata: Metadata[AnyRole], signer: Signer) -> None:
    """Add the signature of ``signer``; those of others stay.

    Raises:
        HansaError: ``KEY_INVALID``; the key, or the device that holds it, did not sign.
    """
    try:
        metadata.sign(signer, append=True)
    except UnsignedMetadataError as error:
        raise HansaError(Reason.KEY_INVALID, "The key did not sign.", field="key", log=ascii(str(error))) from error


def signed_by(metadata: Metadata[AnyRole], role: str, root: Root) -> tuple[list[Key], list[Key]]:
    """Return the keys of ``role`` that have rightly signed ``metadata``, and those that have not."""
    result = root.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    return list(result.signed.values()), list(result.unsigned.values())


def _whole(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


def _invalid(words: str) -> HansaError:
    return HansaError(Reason.TRUST_INVALID, words, field="root")
