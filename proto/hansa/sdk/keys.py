"""A person's keys, made once, kept in files that only their owner reads: Ed25519 to sign, X25519 to receive."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from hansa.contract.errors import HansaError, Reason
from hansa.contract.raw_keys import key_digest, key_text

AnyPublicKey = Ed25519PublicKey | X25519PublicKey

_KEY_BYTES: Final = 8 << 10
_PRIVATE_MODE: Final = 0o600
_PUBLIC_MODE: Final = 0o644
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def create_key(path: Path) -> Ed25519PublicKey:
    """Make a signing key: the private one at ``path``, the public one at ``path``.pub.

    Nothing is ever overwritten, and a key whose public half could not be
    written is taken away again.

    Raises:
        HansaError: ``FILE_INVALID``; one of the files is there already, or
            the folder cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    _write_pair(path, key, key.public_key())
    return key.public_key()


def create_recipient_key(path: Path) -> X25519PublicKey:
    """Make a key that summaries can be sealed to, in two files as ``create_key``.

    Raises:
        HansaError: as ``create_key``.
    """
    key = X25519PrivateKey.generate()
    _write_pair(path, key, key.public_key())
    return key.public_key()


def _write_pair(path: Path, key: Ed25519PrivateKey | X25519PrivateKey, public: AnyPublicKey) -> None:
    public_path = path.with_name(f"{path.name}.pub")
    if os.path.lexists(public_path):
        raise HansaError(Reason.FILE_INVALID, f"{public_path} is there already; keys are never overwritten.")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_new(path, pem, _PRIVATE_MODE)
    try:
        _write_new(public_path, public_pem(public).encode(), _PUBLIC_MODE)
    except HansaError:
        path.unlink()
        raise


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


def load_recipient_key(path: Path) -> X25519PrivateKey:
    """Return the private key in the file ``path`` that opens what is sealed to its owner.

    Raises:
        HansaError: ``KEY_INVALID``; as ``load_private_key``, for X25519.
    """
    key = _loaded(_read_private(path), path)
    if not isinstance(key, X25519PrivateKey):
        raise HansaError(Reason.KEY_INVALID, f"{path} does not hold an X25519 private key.", field="recipient_key")
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
    """Return the public signing key in the file ``path``.

    Raises:
        HansaError: ``KEY_INVALID``; the file cannot be read or holds no
            Ed25519 public key, but a private one, say.
    """
    key = read_any_public_key(path)
    if not isinstance(key, Ed25519PublicKey):
        raise HansaError(Reason.KEY_INVALID, f"{path} holds a key that is not Ed25519.", field="key")
    return key


def read_recipient_public_key(path: Path) -> X25519PublicKey:
    """Return the public key in the file ``path`` that summaries are sealed to.

    Raises:
        HansaError: ``KEY_INVALID``; as ``read_public_key``, for X25519.
    """
    key = read_any_public_key(path)
    if not isinstance(key, X25519PublicKey):
        raise HansaError(
            Reason.KEY_INVALID,
            f"{path} holds a key that is not X25519; see `hansa key create --recipient`.",
            field="key",
        )
    return key


def read_any_public_key(path: Path) -> PublicKeyTypes:
    """Return the public key of whatever kind in the file ``path``.

    Raises:
        HansaError: ``KEY_INVALID``; the file cannot be read or holds no public
            key in PEM form, but a private one, say.
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
        return serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise HansaError(Reason.KEY_INVALID, f"{path} does not hold a public key in PEM form.", field="key") from error


def public_pem(key: AnyPublicKey) -> str:
    """Return ``key`` as PEM (SubjectPublicKeyInfo)."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def key_fingerprint(key: AnyPublicKey) -> str:
    """Return the digest by which people, policies and the directory's readers compare ``key``."""
    return key_digest(key_text(key))
