"""The keys on disk: ``<state>/ca``, mode 0700, each key 0600."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.ca.authority import SERVER_LIFE, Authority, Window, create_authority, issue_server
from hansa.contract.errors import HansaError, Reason

_SERVER_CA: Final = "server-ca"
_NODE_CA: Final = "node-ca"
_SERVER: Final = "server"
_INVITATIONS: Final = "invitations.key"
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys of a coordinator.

    ``invitation_key`` is what invitations' secrets are derived from.
    """

    server_ca: Authority
    node_ca: Authority
    server_key_pem: bytes = field(repr=False)
    server_chain_pem: bytes = field(repr=False)
    invitation_key: bytes = field(repr=False)


def create_keys(folder: Path, federation: str, *, names: Sequence[str], now: datetime) -> Authority:
    """Make both CAs and the servers' certificate in ``folder``; return the server CA."""
    folder.mkdir(mode=0o700)
    server_ca = create_authority(f"{federation} server CA", now)
    _write_authority(folder, _SERVER_CA, server_ca)
    _write_authority(folder, _NODE_CA, create_authority(f"{federation} node CA", now))
    write_whole(folder / _INVITATIONS, os.urandom(_SECRET_BYTES), 0o600)
    _make_server(folder, server_ca, names, now)
    return server_ca


def load_keys(folder: Path, *, names: Sequence[str], now: datetime) -> Keys:
    """Return what is in ``folder``; the servers' certificate is made anew where it should be.

    That is when half of its life is over, or when it lacks one of ``names``.

    Raises:
        HansaError: ``STATE_FOLDER_INVALID``; a file is missing or unreadable.
    """
    try:
        server_ca = _read_authority(folder, _SERVER_CA)
        if _is_due(folder, names, now):
            _make_server(folder, server_ca, names, now)
        return Keys(
            server_ca=server_ca,
            node_ca=_read_authority(folder, _NODE_CA),
            server_key_pem=_key_file(folder, _SERVER).read_bytes(),
            server_chain_pem=_certificate_file(folder, _SERVER).read_bytes(),
            invitation_key=(folder / _INVITATIONS).read_bytes(),
        )
    except (OSError, ValueError, TypeError) as error:
        raise HansaError(
            Reason.STATE_FOLDER_INVALID, f"The keys in {folder} cannot be read: {type(error).__name__}."
        ) from error


def _is_due(folder: Path, names: Sequence[str], now: datetime) -> bool:
    certificate = x509.load_pem_x509_certificate(_certificate_file(folder, _SERVER).read_bytes())
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    held = {str(name.value) for name in alternatives}
    return not set(names) <= held or certificate.not_valid_after_utc - now < SERVER_LIFE / 2


def _make_server(folder: Path, ca: Authority, names: Sequence[str], now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = issue_server(ca, key.public_key(), names=names, window=Window(now, SERVER_LIFE))
    _write_key(_key_file(folder, _SERVER), key)
    # The CA stands in the chain, because a node finds it there by its invitation's fingerprint.
    chain = certificate.public_bytes(serialization.Encoding.PEM) + ca.certificate_pem
    write_whole(_certificate_file(folder, _SERVER), chain, 0o644)


def _write_authority(folder: Path, name: str, authority: Authority) -> None:
    _write_key(_key_file(folder, name), authority.key)
    write_whole(_certificate_file(folder, name), authority.certificate_pem, 0o644)


def _read_authority(folder: Path, name: str) -> Authority:
    certificate = x509.load_pem_x509_certificate(_certificate_file(folder, name).read_bytes())
    key = serialization.load_pem_private_key(_key_file(folder, name).read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("the key is not the certificate's")
    return Authority(certificate, key)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_whole(path, encoded, 0o600)


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """Write whole and in place, with its mode from the first byte on."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _key_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.key"


def _certificate_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.pem"
