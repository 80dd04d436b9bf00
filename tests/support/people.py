"""People with fresh keys."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def public_pem(key: Ed25519PrivateKey | None = None) -> str:
    """Return the public half of ``key``, or of a fresh one."""
    public = (key or Ed25519PrivateKey.generate()).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
