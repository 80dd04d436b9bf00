"""A person's Ed25519 key: made once, kept in a file that only its owner reads."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hansa.contract.digests import digest
from hansa.contract.errors import HansaError, Reason

_KEY_BYTES: Final = 8 << 10
_PRIVATE_MODE: Final = 0o600
_PUBLIC_MODE: Final = 0o644
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def create_key(path: Path) -> Ed25519PublicKey:
    """Make a key: the private one at ``path``, the public one at ``path``.pub.

    Nothing is ever overwritten, and a key whose public half could not be
    written is taken away again.

    Raises:
        HansaError: ``FILE_INVALID``; one of the files is there already, or
            the folder cannot be written.
    """
    public_path = path.with_name(f"{path.name}.pub")
    if os.path.lexists(public_path):
        raise HansaError(Reason.FILE_INVALID, f"{public_path} is there already; keys are never overwritten.")
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_new(path, pem, _PRIVATE_MODE)
    try:
        _write_new(public_path, public_pem(key.public_key()).encode(), _PUBLIC_MODE)
    except HansaError:
        path.unlink()
        raise
    return key.public_key()


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise HansaError(Reason.FILE_INVALID, f"{path} is there already; keys are never overwritten.") from error
    except OSError as error:
        raise HansaError(Reason.FILE_INVALID, f"{path} cannot be written: {error.strerror}.") from error
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Return the private key in the file ``path``.

    Raises:
        HansaError: ``KEY_INVALID``; the file cannot be read, may be read by
            others, belongs to another user, or holds no Ed25519 key.
    """
    key = _loaded(_read_private(path), path)
    if not isinstance(key, Ed25519PrivateKey):
        raise HansaError(Reason.KEY_INVALID, f"{path} does not hold an Ed25519 private key.", field="key_file")
    return key


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            # Of the open file, not of the name, which may change meanwhile.
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise HansaError(Reason.KEY_INVALID, f"{path} is not a file.", field="key_file")
            if found.st_mode & _OTHERS or found.st_uid not in {0, os.geteuid()}:
                raise HansaError(Reason.KEY_INVALID, f"Others may read {path}; run: chmod 600 {path}", field="key_file")
            return file.read(_KEY_BYTES)
    except OSError as error:
        raise HansaError(
            Reason.KEY_INVALID, f"The key {path} cannot be read: {error.strerror}.", field="key_file"
        ) from error


def _loaded(data: bytes, path: Path) -> object:
    try:
        return serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise HansaError(
            Reason.KEY_INVALID, f"{path} does not hold an Ed25519 private key in PEM form.", field="key_file"
        ) from error


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Return the public key in the file ``path``.

    Raises:
        HansaError: ``KEY_INVALID``; the file cannot be read or holds no
            Ed25519 public key, but a private one, say.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_KEY_BYTES)
    except OSError as error:
        raise HansaError(Reason.KEY_INVALID, f"{path} cannot be read: {error.strerror}.", field="key") from error
    if b"PRIVATE KEY" in data:
        raise HansaError(
            Reason.KEY_INVALID, f"{path} holds a private key, which nobody else may have; use its .pub.", field="key"
        )
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise HansaError(
            Reason.KEY_INVALID, f"{path} does not hold an Ed25519 public key in PEM form.", field="key"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise HansaError(Reason.KEY_INVALID, f"{path} holds a key that is not Ed25519.", field="key")
    return key


def public_pem(key: Ed25519PublicKey) -> str:
    """Return ``key`` as PEM (SubjectPublicKeyInfo)."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def key_fingerprint(key: Ed25519PublicKey) -> str:
    """Return the digest of ``key``'s DER form (SubjectPublicKeyInfo)."""
    return digest(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
