"""Digests and canonical bytes.

Digests are written ``sha256:<64 hex>``. Canonical JSON (RFC 8785) serves for
digests and ids only; what is signed is signed as the bytes that were made once
(``envelope``).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Any, Final

import rfc8785

DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
CHAIN_START: Final = b"\0" * 32


def digest(data: bytes) -> str:
    """Return the digest of ``data`` in text form."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def canonical(value: Any) -> bytes:
    """Return the RFC 8785 form of a JSON value.

    Raises:
        rfc8785.CanonicalizationError: the value is not JSON, or holds a number
            that JSON cannot carry exactly.
    """
    return rfc8785.dumps(value)


def in_bundle(path: str) -> bool:
    """Say whether the file at ``path`` belongs to a bundle's digest and content.

    A bundle is the whole folder of an analysis but its tests and what Python
    leaves behind.

    Args:
        path: relative to the analysis' folder, with ``/``.
    """
    parts = path.split("/")
    return parts[0] != "tests" and "__pycache__" not in parts


def bundle_listing(files: Mapping[str, bytes]) -> bytes:
    """Return the canonical list of an analysis bundle's files, whose digest names the bundle.

    Args:
        files: content by path relative to the bundle, with ``/``.
    """
    listing = [
        {"path": path, "sha256": hashlib.sha256(files[path]).hexdigest(), "size": len(files[path])}
        for path in sorted(files)
    ]
    return canonical({"v": 1, "files": listing})


def bundle_digest(files: Mapping[str, bytes]) -> str:
    """Return the digest of an analysis bundle: of its files by path.

    Args:
        files: content by path relative to the bundle, with ``/``.
    """
    return digest(bundle_listing(files))


def chain_hash(previous: bytes, body: bytes) -> bytes:
    """Return the hash of an outbox entry: SHA-256(previous hash || body)."""
    return hashlib.sha256(previous + body).digest()


def keyed_hash(salt: bytes, name: str, text: str) -> str:
    """Return what a log holds of words that may have to be erased: ``hmac-sha256:<64 hex>``.

    Args:
        salt: random, of this field of this entry alone; who has it can try texts.
        name: the field's.
        text: a person's name, or a person's words.
    """
    mac = hmac.new(salt, f"{name}\0{text}".encode(), hashlib.sha256)
    return f"hmac-sha256:{mac.hexdigest()}"


def is_keyed_hash(claimed: object, salt: bytes, name: str, text: str) -> bool:
    """Say whether ``claimed`` is the keyed hash of these words: it may be anything that a log held.

    Args:
        claimed: what stands where the hash should.
        salt: see ``keyed_hash``.
        name: see ``keyed_hash``.
        text: see ``keyed_hash``.
    """
    return isinstance(claimed, str) and hmac.compare_digest(claimed.encode(), keyed_hash(salt, name, text).encode())
