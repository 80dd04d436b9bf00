"""The node's TLS key and certificate on its disk.

``keys/credential.pem`` holds both in one file, so that a renewal replaces them
in one step and no crash leaves a key with another key's certificate.
``keys/pending.key`` is the key of a request whose certificate has not arrived:
it is stored before the request is sent and used again after a lost reply.
``keys/server-ca.pem`` is the only CA that the node trusts.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hansa.contract.digests import digest
from hansa.contract.errors import HansaError, Reason
from node_agent.config import StateFolder
from node_agent.durable import sync_folder, write_durably

CREDENTIAL: Final = "credential.pem"
PENDING: Final = "pending.key"
SERVER_CA: Final = "server-ca.pem"
_END_OF_KEY: Final = b"-----END PRIVATE KEY-----\n"


@dataclass(frozen=True, slots=True)
class Credential:
    """A key (PKCS#8 PEM) and its certificate (PEM), as TLS takes them."""

    key_pem: bytes
    certificate_pem: bytes

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate, parsed."""
        return x509.load_pem_x509_certificate(self.certificate_pem)


def is_enrolled(state: StateFolder) -> bool:
    """Say whether the node holds a certificate."""
    return (state.keys / CREDENTIAL).is_file()


def load_credential(state: StateFolder) -> Credential:
    """Return the node's credential.

    Raises:
        HansaError: ``CONFIG_INVALID``; the node is not enrolled, or the file
            does not hold a key with its own certificate.
    """
    data = _read(state.keys / CREDENTIAL)
    key_pem, end, certificate_pem = data.partition(_END_OF_KEY)
    try:
        return checked_credential(key_pem + end, certificate_pem)
    except ValueError as error:
        raise HansaError(Reason.CONFIG_INVALID, f"keys/{CREDENTIAL} is damaged.", log=str(error)) from error


def load_server_ca(state: StateFolder) -> bytes:
    """Return the PEM of the CA that signs the coordinator's servers.

    Raises:
        HansaError: ``CONFIG_INVALID``; the node is not enrolled.
    """
    return _read(state.keys / SERVER_CA)


def checked_credential(key_pem: bytes, certificate_pem: bytes) -> Credential:
    """Return the two as a credential.

    Raises:
        ValueError: one cannot be read, or the certificate is another key's.
    """
    key = _private_key(key_pem)
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    if certificate.public_key() != key.public_key():
        raise ValueError("the certificate is another key's")
    return Credential(key_pem, certificate_pem)


def store_credential(state: StateFolder, credential: Credential) -> None:
    """Put ``credential`` in force in one step, and forget the pending key."""
    write_durably(state.keys / CREDENTIAL, credential.key_pem + credential.certificate_pem)
    with contextlib.suppress(FileNotFoundError):
        (state.keys / PENDING).unlink()
    sync_folder(state.keys)


def pending_key(state: StateFolder) -> bytes:
    """Return the PEM of the key to ask a certificate for, made at the first call.

    The same key comes back until ``store_credential``: an invitation is bound
    to the first key that presents it, and a lost reply must not lock us out.

    Raises:
        HansaError: ``CONFIG_INVALID``; the stored key is damaged.
    """
    path = state.keys / PENDING
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        write_durably(path, _pem(key))
    key_pem = _read(path)
    try:
        _private_key(key_pem)
    except ValueError as error:
        raise HansaError(Reason.CONFIG_INVALID, f"keys/{PENDING} is damaged; remove it.", log=str(error)) from error
    return key_pem


def fresh_key(state: StateFolder) -> bytes:
    """Return the PEM of the key to renew with: the pending one, never the one in force.

    A crash right after ``store_credential`` has replaced the certificate
    leaves its key pending; asked for again, it would be refused for ever.

    Raises:
        HansaError: ``CONFIG_INVALID``; the node is not enrolled, or a key is damaged.
    """
    key_pem = pending_key(state)
    if key_fingerprint(key_pem) != key_fingerprint(load_credential(state).key_pem):
        return key_pem
    (state.keys / PENDING).unlink()
    return pending_key(state)


def signing_request(key_pem: bytes) -> bytes:
    """Return a PKCS#10 request (PEM) for the key; the names in it mean nothing.

    Raises:
        ValueError: the key cannot be read.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(_private_key(key_pem), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def key_fingerprint(key_pem: bytes) -> str:
    """Return ``sha256:<hex>`` of the public half (DER), which operators compare.

    Raises:
        ValueError: the key cannot be read.
    """
    public = _private_key(key_pem).public_key()
    return digest(public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _private_key(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(key_pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic-curve key")  # noqa: TRY004 - one error for all faults of the file
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise HansaError(
            Reason.CONFIG_INVALID,
            f"keys/{path.name} cannot be read; an enrolled node has it, see `hansa-node enrol`.",
            log=str(error),
        ) from error
