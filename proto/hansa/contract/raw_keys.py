"""Public keys as the directory has them: the 32 raw bytes in base64."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

# 43 digits and one '='; the last digit holds two bits that must be zero, or one key had two texts.
RAW_KEY: Final = r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="


def key_text(key: Ed25519PublicKey | X25519PublicKey) -> str:
    """Return ``key`` as the directory has it."""
    return base64.b64encode(key.public_bytes_raw()).decode()


def signing_key(text: str) -> Ed25519PublicKey:
    """Return the key in ``text``, which matches ``RAW_KEY``."""
    return Ed25519PublicKey.from_public_bytes(base64.b64decode(text))


def agreement_key(text: str) -> X25519PublicKey:
    """Return the key in ``text``, which matches ``RAW_KEY``."""
    return X25519PublicKey.from_public_bytes(base64.b64decode(text))


def key_digest(text: str) -> str:
    """Return the digest of a key's raw bytes, ``sha256:<hex>``; what people compare and policies pin."""
    return f"sha256:{hashlib.sha256(base64.b64decode(text)).hexdigest()}"
