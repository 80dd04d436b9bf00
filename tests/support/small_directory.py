"""A small directory for tests of one side alone: fixed people and nodes, each with a key made from the name."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hansa.contract.directory import COORDINATOR, Directory
from hansa.trust.view import TrustView

FEDERATION = "demo"
# name, organisation, roles, and where the role is at a node
_PEOPLE = (
    ("ada", "uni-fi", ("researcher",), ()),
    ("bob", "uni-es", ("researcher",), ()),
    ("carl", "uni-fi", ("researcher", "output-checker"), ("FI",)),
    ("pia", "thl-fi", ("output-checker",), ("FI",)),
    ("rita", "thl-fi", ("output-checker",), ("FI",)),
    ("eva", "isc-es", ("output-checker",), ("ES",)),
    ("dora", "thl-fi", ("data-holder",), ("FI",)),
    ("olga", "gdi", ("federation-operator",), ()),
    ("axel", "gdi", ("auditor",), ()),
    ("rex", "uni-se", ("reviewer",), ()),
    ("rosa", "uni-no", ("reviewer",), ()),
    ("anna", "uni-fi", ("researcher", "reviewer"), ()),
)


def signing_key_of(name: str) -> Ed25519PrivateKey:
    """Return the signing key of a person, a node or ``_coordinator``: the same in each call."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"signing {name}".encode()).digest())


def agreement_key_of(name: str) -> X25519PrivateKey:
    """Return the X25519 key of a person or node: the same in each call."""
    return X25519PrivateKey.from_private_bytes(hashlib.sha256(f"agreement {name}".encode()).digest())


def raw(key: Ed25519PrivateKey | X25519PrivateKey) -> str:
    """Return the public half as directories have it."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def small_directory(nodes: Sequence[str] = ("FI", "ES", "IT"), **changes: Any) -> Directory:
    """Return the directory; ``changes`` replace fields."""
    values: dict[str, Any] = {
        "federation": FEDERATION,
        "version": 1,
        "coordinator_log_key": raw(signing_key_of(COORDINATOR)),
        "people": [
            {
                "name": name,
                "organisation": organisation,
                "signing_key": raw(signing_key_of(name)),
                "recipient_key": raw(agreement_key_of(name)),
                "roles": roles,
                "nodes": where,
            }
            for name, organisation, roles, where in _PEOPLE
        ],
        "nodes": [
            {
                "node": node,
                "organisation": f"holder-{node.lower()}",
                "signing_key": raw(signing_key_of(node)),
                "agreement_key": raw(agreement_key_of(node)),
            }
            for node in nodes
        ],
        "witnesses": tuple(nodes[:2]),
        **changes,
    }
    return Directory.model_validate(values)


def view_of(directory: Directory) -> TrustView:
    """Return a view as if a repository with this directory had been verified."""
    return TrustView(
        root_version=1,
        targets_version=1,
        snapshot_version=1,
        timestamp_version=1,
        expires=datetime(2100, 1, 1, tzinfo=UTC),
        directory=directory,
    )
