from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.api.tokens import claimed_name, verify_token
from hansa.contract.errors import HansaError
from hansa.sdk.tokens import mint

NOW = datetime(2025, 11, 22, 16, 0, 0, 700_000, tzinfo=UTC)


def test_the_coordinator_accepts_what_the_client_mints() -> None:
    key = Ed25519PrivateKey.generate()
    token = mint("ada", "demo", key, now=NOW, jti="a" * 32)
    assert claimed_name(token) == "ada"
    verify_token(token, name="ada", key=key.public_key(), federation="demo", now=NOW)


def test_a_token_is_for_one_federation_one_key_and_one_minute() -> None:
    key = Ed25519PrivateKey.generate()
    token = mint("ada", "demo", key, now=NOW, jti="a" * 32)
    other = Ed25519PrivateKey.generate().public_key()
    late = NOW + timedelta(seconds=66)
    for wrong in (
        {"key": key.public_key(), "federation": "other", "now": NOW},
        {"key": other, "federation": "demo", "now": NOW},
        {"key": key.public_key(), "federation": "demo", "now": late},
    ):
        with pytest.raises(HansaError):
            verify_token(token, name="ada", **wrong)  # type: ignore[arg-type]  # one dict for three cases


def test_a_token_says_who_and_nothing_else() -> None:
    token = mint("ada", "demo", Ed25519PrivateKey.generate(), now=NOW, jti="b")
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "typ": "JWT", "kid": "ada"}
    claims = jwt.decode(token, options={"verify_signature": False})
    assert set(claims) == {"iss", "aud", "iat", "exp", "jti"}
    assert claims["exp"] - claims["iat"] == 60
