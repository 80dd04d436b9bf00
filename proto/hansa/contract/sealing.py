"""Summaries sealed to one reader (HPKE, RFC 9180), so that nobody on the way can read them.

X25519, HKDF-SHA256, ChaCha20-Poly1305. ``info`` binds the ciphertext to its
run, attempt and job; the plaintext is padded, so that its length says little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import SUMMARY_BYTES

BUCKET_BYTES: Final = 4 << 10
# The encapsulated key and the tag.
OVERHEAD_BYTES: Final = 32 + 16
SEALED_BYTES: Final = SUMMARY_BYTES + BUCKET_BYTES + OVERHEAD_BYTES

_LENGTH_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class SealContext:
    """What a sealed summary belongs to; it opens as nothing else."""

    run_id: str
    attempt: int
    job_digest: str

    def info(self) -> bytes:
        """Return HPKE's ``info``."""
        return b"|".join(
            (b"hansa/summary/v1", self.run_id.encode(), str(self.attempt).encode(), self.job_digest.encode())
        )


def seal(summary: bytes, recipient: X25519PublicKey, context: SealContext) -> bytes:
    """Return ``summary`` sealed to ``recipient``. Each call gives other bytes: call once and store."""
    return _suite().encrypt(_padded(summary), recipient, context.info())


def open_sealed(sealed: bytes, key: X25519PrivateKey, context: SealContext) -> bytes:
    """Return the summary in ``sealed``.

    Raises:
        HansaError: ``SEALED_INVALID``; sealed to another key or for another
            run, or changed.
    """
    if not is_sealed_size(len(sealed)):
        raise HansaError(Reason.SEALED_INVALID, log=f"{len(sealed)} bytes")
    try:
        return _unpadded(_suite().decrypt(sealed, key, context.info()))
    except (InvalidTag, ValueError) as error:
        raise HansaError(Reason.SEALED_INVALID, log=type(error).__name__) from error


def is_sealed_size(size: int) -> bool:
    """Say whether a sealed summary can have this size; that is all that can be said of one unopened."""
    return OVERHEAD_BYTES < size <= SEALED_BYTES and (size - OVERHEAD_BYTES) % BUCKET_BYTES == 0


def _suite() -> Suite:
    return Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def _padded(summary: bytes) -> bytes:
    """Return the length, the summary, and zeros up to a full bucket."""
    head = len(summary).to_bytes(_LENGTH_BYTES, "big")
    return head + summary + bytes(-(len(head) + len(summary)) % BUCKET_BYTES)


def _unpadded(padded: bytes) -> bytes:
    length = int.from_bytes(padded[:_LENGTH_BYTES], "big")
    summary = padded[_LENGTH_BYTES : _LENGTH_BYTES + length]
    if _padded(summary) != padded:
        raise ValueError("not padded as it should be")
    return summary
