"""The token that a person's call carries: read strictly, then verified.

A JWT signed with the person's registered Ed25519 key, for one federation and
at most a minute. Header and claims are closed lists: a key that the token
brings along (jwk, jku, x5c) is refused, not ignored.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import PERSON_NAME
from hansa.contract.limits import TOKEN_LIFE
from hansa.contract.strict import strict_json

_ALGORITHM: Final = "EdDSA"
_CLAIMS: Final = ("iss", "aud", "iat", "exp", "jti")
_MOST_CHARACTERS: Final = 4096
_MOST_JTI: Final = 64
_LEEWAY: Final = timedelta(seconds=5)


def claimed_name(token: str) -> str:
    """Return the name that ``token`` claims, which proves nothing yet.

    Raises:
        HansaError: ``UNAUTHENTICATED``; it is not a token of ours.
    """
    if len(token) > _MOST_CHARACTERS or token.count(".") != 2:  # noqa: PLR2004 - header, claims, signature
        raise _refused("shape")
    head, claims, _ = token.split(".")
    header = _object(head)
    if set(header) != {"alg", "typ", "kid"} or header["alg"] != _ALGORITHM or header["typ"] != "JWT":
        raise _refused("header")
    if set(_object(claims)) != set(_CLAIMS):
        raise _refused("claims")
    name = header["kid"]
    if not isinstance(name, str) or not PERSON_NAME.fullmatch(name):
        raise _refused("kid")
    return name


def verify_token(token: str, *, name: str, key: Ed25519PublicKey, federation: str, now: datetime) -> None:
    """Return if ``token`` was made by ``key`` for ``federation`` and is valid at ``now``.

    Args:
        token: one that ``claimed_name`` has accepted.
        name: whom it claims to be of.
        key: that person's registered key.
        federation: this federation's name.
        now: aware UTC time.

    Raises:
        HansaError: ``UNAUTHENTICATED``.
    """
    try:
        # The times are judged below, against the clock that we were given.
        claims = jwt.decode(
            token,
            key,
            algorithms=[_ALGORITHM],
            audience=f"hansa:{federation}",
            issuer=name,
            options={
                "require": list(_CLAIMS),
                "strict_aud": True,
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise _refused(type(error).__name__) from error
    _check_times(claims, now)


def _check_times(claims: Mapping[str, Any], now: datetime) -> None:
    issued, ends, jti = claims["iat"], claims["exp"], claims["jti"]
    # Not isinstance: a bool is an int to Python.
    if type(issued) is not int or type(ends) is not int or not isinstance(jti, str) or not 0 < len(jti) <= _MOST_JTI:
        raise _refused("types")
    if not 0 < ends - issued <= TOKEN_LIFE.total_seconds():
        raise _refused("lifetime")
    moment, leeway = now.timestamp(), _LEEWAY.total_seconds()
    if issued > moment + leeway or ends <= moment - leeway:
        raise HansaError(
            Reason.UNAUTHENTICATED, "The call's token is not valid now; check this machine's clock.", log="time"
        )


def _object(part: str) -> dict[str, Any]:
    try:
        raw = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
        value = strict_json(raw)
    except (ValueError, RecursionError, json.JSONDecodeError) as error:
        raise _refused("encoding") from error
    if not isinstance(value, dict):
        raise _refused("encoding")
    return value


def _refused(log: str) -> HansaError:
    return HansaError(Reason.UNAUTHENTICATED, log=f"token refused: {log}")
