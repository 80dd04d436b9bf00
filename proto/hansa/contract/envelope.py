"""DSSE envelopes: a payload, and signatures over exactly its bytes.

The signed bytes are DSSE's pre-authentication encoding (secure-systems-lab/dsse,
protocol.md): ``"DSSEv1" SP len(type) SP type SP len(payload) SP payload``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hansa.contract.errors import HansaError, Reason

JOB_TYPE: Final = "application/vnd.hansa.job.v1+json"


@dataclass(frozen=True, slots=True)
class Signed:
    """A payload with one signature; ``key_id`` names who signed."""

    payload_type: str
    payload: bytes
    key_id: str
    signature: bytes


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: bytes, *, key_id: str, key: Ed25519PrivateKey) -> Signed:
    """Return ``payload`` signed by ``key``."""
    return Signed(payload_type, payload, key_id, key.sign(pre_authentication_encoding(payload_type, payload)))


def verify(signed: Signed, *, payload_type: str, key: Ed25519PublicKey) -> None:
    """Return if ``key`` signed this payload as a ``payload_type``.

    Raises:
        HansaError: ``ENVELOPE_INVALID``; another type, or no signature of the key.
    """
    if signed.payload_type != payload_type:
        raise HansaError(Reason.ENVELOPE_INVALID, field="payload_type", log=signed.payload_type[:64])
    try:
        key.verify(signed.signature, pre_authentication_encoding(payload_type, signed.payload))
    except InvalidSignature as error:
        raise HansaError(
            Reason.ENVELOPE_INVALID, "The job is not signed by its submitter.", field="signatures"
        ) from error
