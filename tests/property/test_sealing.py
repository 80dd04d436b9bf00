"""A sealed summary opens for its reader, as what it is, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from hansa.contract.errors import HansaError, Reason
from hansa.contract.sealing import BUCKET_BYTES, SealContext, is_sealed_size, open_sealed, seal

KEY = X25519PrivateKey.from_private_bytes(b"\1" * 32)
OTHER = X25519PrivateKey.from_private_bytes(b"\2" * 32)
CONTEXT = SealContext("0" * 32, 1, "sha256:" + "0" * 64)


def refused(sealed: bytes, key: X25519PrivateKey, context: SealContext) -> None:
    with pytest.raises(HansaError) as caught:
        open_sealed(sealed, key, context)
    assert caught.value.reason is Reason.SEALED_INVALID


@given(st.binary(max_size=2 * BUCKET_BYTES))
def test_the_reader_gets_back_what_was_sealed(summary: bytes) -> None:
    sealed = seal(summary, KEY.public_key(), CONTEXT)
    assert open_sealed(sealed, KEY, CONTEXT) == summary
    assert is_sealed_size(len(sealed))
    refused(sealed, OTHER, CONTEXT)


@pytest.mark.parametrize("change", [{"run_id": "1" * 32}, {"attempt": 2}, {"job_digest": "sha256:" + "1" * 64}])
def test_it_opens_as_no_other_run_attempt_or_job(change: dict[str, Any]) -> None:
    refused(seal(b"{}", KEY.public_key(), CONTEXT), KEY, replace(CONTEXT, **change))


@given(st.integers(0, 8 * (BUCKET_BYTES + 48) - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    sealed = bytearray(seal(b"{}", KEY.public_key(), CONTEXT))
    sealed[bit // 8] ^= 1 << bit % 8
    refused(bytes(sealed), KEY, CONTEXT)


@given(st.integers(0, BUCKET_BYTES - 8))
def test_the_length_is_told_in_large_steps_only(size: int) -> None:
    assert len(seal(bytes(size), KEY.public_key(), CONTEXT)) == len(seal(b"", KEY.public_key(), CONTEXT))


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    refused(data, KEY, CONTEXT)
