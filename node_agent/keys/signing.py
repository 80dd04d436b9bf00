"""Signing in the node's name: release statements, and checkpoints of its log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.contract import envelope
from hansa.contract.envelope import Signed


class Signer(Protocol):
    """Signs in the node's name."""

    def sign(self, payload_type: str, payload: bytes) -> Signed:
        """Return ``payload`` with the node's signature."""


@dataclass(frozen=True, slots=True)
class KeySigner:
    """The ``Signer`` of the running agent: a key in memory."""

    node: str
    key: Ed25519PrivateKey

    def sign(self, payload_type: str, payload: bytes) -> Signed:
        """Return ``payload`` with the node's signature."""
        return envelope.sign(payload_type, payload, key_id=self.node, key=self.key)
