"""A trust world's repository and keys as files, as the commands take them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hansa.contract.directory import COORDINATOR
from tests.support.trust_world import TrustWorld


def write_key(path: Path, key: Ed25519PrivateKey) -> Path:
    """Write ``key`` as `hansa key create` does."""
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def write_trust(trust: TrustWorld, folder: Path) -> Mapping[str, str]:
    """Write the repository and the coordinator's keys into ``folder``; return the options of ``init``."""
    folder.mkdir(parents=True, exist_ok=True)
    repository = folder / "repository"
    trust.files.write(repository)
    keys = {"snapshot": "snapshot", "timestamp": "timestamp", "log": COORDINATOR}
    paths = {f"--{name}-key": str(write_key(folder / f"{name}.key", trust.keys[key])) for name, key in keys.items()}
    return {"--trust": str(repository), **paths}


def as_arguments(options: Mapping[str, str]) -> list[str]:
    """Return ``options`` as a command line has them."""
    return [text for option in options.items() for text in option]
