"""The token that each call carries: a JWT of at most 60 seconds, by the person's key."""

from __future__ import annotations

from datetime import datetime

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.contract.limits import TOKEN_LIFE


def audience(federation: str) -> str:
    """Return the ``aud`` of tokens for ``federation``."""
    return f"hansa:{federation}"


def mint(person: str, federation: str, key: Ed25519PrivateKey, *, now: datetime, jti: str) -> str:
    """Return a token that says: the bearer is ``person``, for 60 seconds from ``now``.

    Args:
        person: the name in the directory; ``iss`` and ``kid``.
        federation: binds the token to one federation (``aud``).
        key: the person's private key.
        now: aware UTC time.
        jti: random, another one for each token.
    """
    issued = int(now.timestamp())
    claims = {
        "iss": person,
        "aud": audience(federation),
        "iat": issued,
        "exp": issued + int(TOKEN_LIFE.total_seconds()),
        "jti": jti,
    }
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": person})
