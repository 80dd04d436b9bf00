"""What is read of a node's certificate request: its public key, nothing else.

Names, extensions and attributes in it are ignored; who the node is follows
from its invitation or from the certificate that it renews.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hansa.contract.digests import digest
from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import CSR_BYTES

_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


def public_key_of(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """Return the public key of a PKCS#10 request that its own key has signed.

    Raises:
        HansaError: ``KEY_INVALID``; over 8 KiB, not a request, not signed by
            its key, or not an EC key on P-256, P-384 or P-521.
    """
    if len(csr_pem) > CSR_BYTES:
        raise _refused(f"The request is over {CSR_BYTES} bytes.")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise _refused("The certificate request cannot be read.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise _refused("The key must be an EC key on P-256, P-384 or P-521.")
    if not proven:
        raise _refused("The request is not signed by its own key.")
    return key


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the digest of the key's SubjectPublicKeyInfo (DER)."""
    return digest(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def _refused(words: str) -> HansaError:
    return HansaError(Reason.KEY_INVALID, words, field="csr_pem")
