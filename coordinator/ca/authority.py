"""The two certificate authorities and what they issue.

One signs the coordinator's servers and is all that nodes trust; the other
signs nodes and is all that the coordinator trusts, so that neither side's
certificate can stand in for the other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hansa.contract.identity import node_uri

# A peer whose clock is a little behind must not refuse a fresh certificate.
_BACKDATE: Final = timedelta(seconds=60)
CA_LIFE: Final = timedelta(days=3650)
SERVER_LIFE: Final = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The CA's certificate, PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the certificate's DER form, 32 bytes."""
        return self.certificate.fingerprint(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class Window:
    """When a certificate is valid: ``life`` from ``now`` (aware UTC)."""

    now: datetime
    life: timedelta

    @property
    def not_before(self) -> datetime:
        """The start, a minute early."""
        return self.now - _BACKDATE

    @property
    def not_after(self) -> datetime:
        """The end, in whole seconds as certificates have them."""
        return (self.now + self.life).replace(microsecond=0)


def create_authority(name: str, now: datetime) -> Authority:
    """Return a new CA named ``name`` with a P-256 key; it may sign leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = _builder(subject, subject, key.public_key(), Window(now, CA_LIFE))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue_server(
    ca: Authority, key: ec.EllipticCurvePublicKey, *, names: Sequence[str], window: Window
) -> x509.Certificate:
    """Return the certificate of the coordinator's servers.

    Args:
        ca: the server CA.
        key: the servers' key.
        names: DNS names and IP addresses, all as subject alternative names.
        window: its validity.
    """
    builder = _leaf(ca, key, window, ExtendedKeyUsageOID.SERVER_AUTH)
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
    # The subject is empty, so the SAN must be critical (RFC 5280, 4.2.1.6).
    return builder.add_extension(alternatives, critical=True).sign(ca.key, hashes.SHA256())


def issue_node(
    ca: Authority, key: ec.EllipticCurvePublicKey, *, federation: str, node: str, window: Window
) -> x509.Certificate:
    """Return a node's certificate: one URI SAN that names it, for TLS clients only.

    SPIFFE would have it serve both ends; ours must never pass for a server.
    """
    builder = _leaf(ca, key, window, ExtendedKeyUsageOID.CLIENT_AUTH)
    identity = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(node_uri(federation, node))])
    return builder.add_extension(identity, critical=True).sign(ca.key, hashes.SHA256())


def _leaf(
    ca: Authority, key: ec.EllipticCurvePublicKey, window: Window, use: x509.ObjectIdentifier
) -> x509.CertificateBuilder:
    builder = _builder(x509.Name([]), ca.certificate.subject, key, window)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    return builder.add_extension(authority, critical=False)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, window: Window
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(window.not_before)
        .not_valid_after(window.not_after)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)
