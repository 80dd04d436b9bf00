"""A signed job is what its signer signed, to the last bit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from hansa.contract.envelope import JOB_TYPE, Signed, from_json, pre_authentication_encoding, sign, to_json, verify
from hansa.contract.errors import HansaError, Reason

KEY = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"\2" * 32)


def is_refused(signed: Signed, payload_type: str = JOB_TYPE) -> bool:
    try:
        verify(signed, payload_type=payload_type, key=KEY.public_key())
    except HansaError as error:
        return error.reason is Reason.ENVELOPE_INVALID
    return False


def flipped(data: bytes, bit: int) -> bytes:
    bit %= 8 * len(data)
    return bytes(byte ^ (1 << bit % 8 if place == bit // 8 else 0) for place, byte in enumerate(data))


@given(st.binary(min_size=1, max_size=200), st.integers(0), st.sampled_from(["payload", "signature"]))
def test_any_flipped_bit_is_refused(payload: bytes, bit: int, part: str) -> None:
    signed = sign(JOB_TYPE, payload, key_id="ana", key=KEY)
    assert not is_refused(signed)
    if part == "payload":
        assert is_refused(replace(signed, payload=flipped(signed.payload, bit)))
    else:
        assert is_refused(replace(signed, signature=flipped(signed.signature, bit)))


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_a_signature_is_not_of_other_bytes(payload: bytes, signature: bytes) -> None:
    assert is_refused(Signed(JOB_TYPE, payload, "ana", signature))
    assert is_refused(sign(JOB_TYPE, payload, key_id="ana", key=OTHER))


@given(st.text(max_size=40), st.binary(max_size=40))
def test_what_was_signed_as_another_type_is_refused(kind: str, payload: bytes) -> None:
    signed = sign(kind, payload, key_id="ana", key=KEY)
    assert is_refused(signed) == (kind != JOB_TYPE)
    assert is_refused(replace(signed, payload_type=JOB_TYPE)) == (kind != JOB_TYPE)


types = st.text("ab 1", max_size=6)
payloads = st.binary(max_size=12)


@given(types, payloads, types, payloads)
def test_two_messages_never_have_the_same_signed_bytes(one: str, a: bytes, two: str, b: bytes) -> None:
    same = pre_authentication_encoding(one, a) == pre_authentication_encoding(two, b)
    assert same == ((one, a) == (two, b))


def test_the_encoding_is_that_of_the_dsse_specification() -> None:
    assert pre_authentication_encoding("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_refusal_is_in_words_for_people() -> None:
    with pytest.raises(HansaError, match="not signed by whom it names"):
        verify(sign(JOB_TYPE, b"x", key_id="ana", key=OTHER), payload_type=JOB_TYPE, key=KEY.public_key())


@given(st.binary(max_size=100))
def test_an_envelope_in_a_file_has_one_form_only(payload: bytes) -> None:
    data = to_json(sign(JOB_TYPE, payload, key_id="ana", key=KEY))
    assert from_json(data).payload == payload
    value = json.loads(data)
    spelt = {**value, "signatures": [{**value["signatures"][0], "sig": value["signatures"][0]["sig"][:-3] + "x=="}]}
    for other in (
        json.dumps(value).encode(),
        data + b"\n",
        json.dumps({**value, "more": 1}, separators=(",", ":")).encode(),
        json.dumps(spelt, separators=(",", ":")).encode(),
    ):
        if other != data:
            with pytest.raises(HansaError) as caught:
                from_json(other)
            assert caught.value.reason is Reason.ENVELOPE_INVALID
