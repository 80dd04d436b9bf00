"""DSSE envelopes: a payload, and a signature over exactly its bytes.

The signed bytes are DSSE's pre-authentication encoding (secure-systems-lab/dsse,
protocol.md): ``"DSSEv1" SP len(type) SP type SP len(payload) SP payload``. The
type is part of what is signed, so that a signature made for one purpose is
worth nothing for another.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hansa.contract.errors import HansaError, Reason
from hansa.contract.strict import strict_json

JOB_TYPE: Final = "application/vnd.hansa.job.v1+json"
PASSPORT_ADDENDUM_TYPE: Final = "application/vnd.hansa.passport-addendum.v1+json"
VOTE_TYPE: Final = "application/vnd.hansa.analysis-vote.v1+json"
AUTHORSHIP_TYPE: Final = "application/vnd.hansa.analysis-authorship.v1+json"
APPROVAL_TYPE: Final = "application/vnd.hansa.approval.v1+json"
DECISION_TYPE: Final = "application/vnd.hansa.release-decision.v1+json"
STATEMENT_TYPE: Final = "application/vnd.in-toto+json"

# Longest envelope in a file; the payloads have bounds of their own.
ENVELOPE_BYTES: Final = 256 << 10


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
        raise HansaError(Reason.ENVELOPE_INVALID, field="payload_type", log=ascii(signed.payload_type[:64]))
    try:
        key.verify(signed.signature, pre_authentication_encoding(payload_type, signed.payload))
    except InvalidSignature as error:
        raise HansaError(
            Reason.ENVELOPE_INVALID, "The envelope is not signed by whom it names.", field="signatures"
        ) from error


def to_json(signed: Signed) -> bytes:
    """Return the envelope as DSSE's JSON, as files have it."""
    return json.dumps(
        {
            "payloadType": signed.payload_type,
            "payload": base64.b64encode(signed.payload).decode(),
            "signatures": [{"keyid": signed.key_id, "sig": base64.b64encode(signed.signature).decode()}],
        },
        separators=(",", ":"),
    ).encode()


def from_json(data: bytes) -> Signed:
    """Return the envelope in DSSE's JSON ``data``.

    Only the one form that ``to_json`` writes is taken, so that no bit of a
    file can change unnoticed.

    Raises:
        HansaError: ``ENVELOPE_INVALID``; not that, or over ``ENVELOPE_BYTES``.
    """
    if len(data) > ENVELOPE_BYTES:
        raise HansaError(Reason.ENVELOPE_INVALID, f"The envelope is over {ENVELOPE_BYTES} bytes.", field="envelope")
    try:
        value = strict_json(data)
        (signature,) = value["signatures"]
        signed = Signed(
            _text(value["payloadType"]),
            base64.b64decode(_text(value["payload"]), validate=True),
            _text(signature["keyid"]),
            base64.b64decode(_text(signature["sig"]), validate=True),
        )
    except (ValueError, LookupError, TypeError, RecursionError, binascii.Error) as error:
        raise HansaError(Reason.ENVELOPE_INVALID, "This is not a DSSE envelope.", field="envelope") from error
    if to_json(signed) != data:
        raise HansaError(Reason.ENVELOPE_INVALID, "The envelope is not in its one form.", field="envelope")
    return signed


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value
