"""Whether a node's session may stand: the form of its frames. How stores meet is ``hansa.contract.attach``."""

from __future__ import annotations

import hmac

from coordinator.domain.frames import HeadProof, Hello
from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import PROTOCOL_VERSION


def check_hello(hello: Hello) -> None:
    """Return if the node speaks this protocol and names its store.

    Raises:
        HansaError: ``VERSION_UNSUPPORTED`` or ``PROTOCOL_VIOLATION``.
    """
    if hello.protocol != PROTOCOL_VERSION:
        raise HansaError(
            Reason.VERSION_UNSUPPORTED,
            f"The coordinator speaks protocol {PROTOCOL_VERSION}, the node {hello.protocol}.",
        )
    if not (0 < len(hello.store_uuid) <= 64 and hello.store_uuid.isascii()):  # noqa: PLR2004 - a UUID's room
        raise HansaError(Reason.PROTOCOL_VIOLATION, field="store_uuid")


def check_proof(proof: HeadProof, *, epoch: int, nonce: bytes) -> None:
    """Return if ``proof`` answers this session's welcome and no other's.

    Raises:
        HansaError: ``PROTOCOL_VIOLATION``.
    """
    if proof.epoch != epoch or not hmac.compare_digest(proof.nonce, nonce):
        raise HansaError(Reason.PROTOCOL_VIOLATION, "The head proof answers another welcome.", field="head_proof")
