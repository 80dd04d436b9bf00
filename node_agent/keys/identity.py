"""The node's own keys: what it signs releases with, and what is sealed to it.

Made at enrolment, before anything is asked for; the private halves never leave
``keys/``. The public ones go to the federation's operators on a card, out of
band, and come back in the directory that they sign.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from hansa.contract.digests import canonical, digest
from hansa.contract.errors import HansaError, Reason
from hansa.contract.node_card import NodeCard
from hansa.contract.raw_keys import key_text
from node_agent.config import StateFolder, load_config
from node_agent.durable import write_durably
from node_agent.keys.credential import key_fingerprint, load_credential
from node_agent.policy.admission import NodeKeys

SIGNING: Final = "signing.key"
AGREEMENT: Final = "agreement.key"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """The private halves."""

    signing: Ed25519PrivateKey
    agreement: X25519PrivateKey

    @property
    def public(self) -> NodeKeys:
        """The public halves, as the directory writes them."""
        return NodeKeys(key_text(self.signing.public_key()), key_text(self.agreement.public_key()))


def make_identity(state: StateFolder) -> NodeIdentity:
    """Return the node's keys, made at the first call.

    Raises:
        HansaError: ``CONFIG_INVALID``; a stored key is damaged.
    """
    for name, kind in ((SIGNING, Ed25519PrivateKey), (AGREEMENT, X25519PrivateKey)):
        path = state.keys / name
        if not path.exists():
            pem = kind.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_durably(path, pem)
    return load_identity(state)


def load_identity(state: StateFolder) -> NodeIdentity:
    """Return the node's keys.

    Raises:
        HansaError: ``CONFIG_INVALID``; they are missing or damaged. ``KEY_INVALID``; others may read them.
    """
    signing, agreement = _load(state.keys / SIGNING), _load(state.keys / AGREEMENT)
    if not isinstance(signing, Ed25519PrivateKey) or not isinstance(agreement, X25519PrivateKey):
        raise HansaError(Reason.CONFIG_INVALID, f"keys/{SIGNING} or keys/{AGREEMENT} holds a key of another kind.")
    return NodeIdentity(signing, agreement)


def node_card(state: StateFolder) -> NodeCard:
    """Return what the federation's operators put into the directory, with a fingerprint to compare.

    Raises:
        HansaError: ``CONFIG_INVALID``; the node is not enrolled.
    """
    keys = load_identity(state).public
    facts: dict[str, Any] = {
        "v": 1,
        "node": load_config(state).node,
        "signing_key": keys.signing,
        "agreement_key": keys.agreement,
        "tls_fingerprint": key_fingerprint(load_credential(state).key_pem),
    }
    return NodeCard(**facts, fingerprint=digest(canonical(facts)))


def _load(path: Path) -> object:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS:
                raise HansaError(Reason.KEY_INVALID, f"Others may read {path}; run: chmod 600 {path}", field="keys")
            return load_pem_private_key(file.read(), password=None)
    except OSError as error:
        raise HansaError(
            Reason.CONFIG_INVALID,
            f"keys/{path.name} cannot be read; `hansa-node enrol` makes it.",
            log=str(error),
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise HansaError(Reason.CONFIG_INVALID, f"keys/{path.name} is damaged.", log=str(error)) from error
