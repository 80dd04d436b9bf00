"""The node's own signing key: what its release statements are signed with.

``keys/signing.key``, PKCS#8 PEM, 0600; born here and never sent. Its public
half reaches the directory by way of the node card.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.contract import envelope
from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason
from node_agent.config import StateFolder
from node_agent.durable import write_durably

SIGNING_KEY: Final = "signing.key"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


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


def create_signing_key(state: StateFolder) -> Ed25519PrivateKey:
    """Make the key if there is none yet; return it."""
    path = state.keys / SIGNING_KEY
    if not path.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_durably(path, pem)
    return load_signing_key(state)


def load_signing_key(state: StateFolder) -> Ed25519PrivateKey:
    """Return the node's signing key.

    Raises:
        HansaError: ``KEY_INVALID``; there is none, others may read it, or it
            is no Ed25519 key.
    """
    path = state.keys / SIGNING_KEY
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS:
                raise HansaError(Reason.KEY_INVALID, f"Others may read {path}; run: chmod 600 {path}", field="keys")
            key = serialization.load_pem_private_key(file.read(), password=None)
    except OSError as error:
        words = f"The node's signing key {path} cannot be read: {error.strerror}; `hansa-node enrol` makes it."
        raise HansaError(Reason.KEY_INVALID, words, field="keys") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise HansaError(Reason.KEY_INVALID, f"{path} is no Ed25519 key in PEM form.", field="keys") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise HansaError(Reason.KEY_INVALID, f"{path} is no Ed25519 key in PEM form.", field="keys")
    return key
