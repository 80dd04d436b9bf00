"""The coordinator's own keys in ``<state>/trust``: mode 0700, each key 0600.

They say which version of the trust repository is the newest, and sign the
checkpoints of the audit log. None of them can name a person, a node or an
analysis.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from coordinator.ca.files import write_whole
from coordinator.services.trust import TrustDuty
from hansa.contract.errors import HansaError, Reason
from hansa.contract.raw_keys import key_text
from hansa.sdk.keys import load_private_key
from hansa.trust.online import OnlineKeys

TRUST_FOLDER: Final = "trust"
ROOT_FILE: Final = "root.json"
SNAPSHOT_KEY: Final = "snapshot.key"
TIMESTAMP_KEY: Final = "timestamp.key"
LOG_KEY: Final = "log.key"


@dataclass(frozen=True, slots=True)
class TrustKeys:
    """What the coordinator signs with."""

    online: OnlineKeys = field(repr=False)
    log: Ed25519PrivateKey = field(repr=False)

    def duty(self, federation: str) -> TrustDuty:
        """Return what the services need of the keys."""
        return TrustDuty(federation, self.online, key_text(self.log.public_key()))


def read_keys(*, snapshot: Path, timestamp: Path, log: Path) -> TrustKeys:
    """Return the keys in three files.

    Raises:
        HansaError: ``KEY_INVALID``.
    """
    return TrustKeys(OnlineKeys(load_private_key(snapshot), load_private_key(timestamp)), load_private_key(log))


def load_trust_keys(state_dir: Path) -> TrustKeys:
    """Return the keys in ``state_dir``.

    Raises:
        HansaError: ``STATE_FOLDER_INVALID``; one is missing or unreadable, or
            others may read it.
    """
    folder = state_dir / TRUST_FOLDER
    try:
        return read_keys(snapshot=folder / SNAPSHOT_KEY, timestamp=folder / TIMESTAMP_KEY, log=folder / LOG_KEY)
    except HansaError as error:
        raise HansaError(Reason.STATE_FOLDER_INVALID, error.public) from error


def write_trust(state_dir: Path, keys: TrustKeys, root: bytes) -> None:
    """Write the keys and the pinned root below ``state_dir``."""
    folder = state_dir / TRUST_FOLDER
    folder.mkdir(mode=0o700)
    for name, key in (
        (SNAPSHOT_KEY, keys.online.snapshot),
        (TIMESTAMP_KEY, keys.online.timestamp),
        (LOG_KEY, keys.log),
    ):
        write_whole(folder / name, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    write_whole(folder / ROOT_FILE, root, 0o644)
