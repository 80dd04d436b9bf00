"""The list of an analysis bundle's files: the bytes whose SHA-256 is the bundle's digest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rfc8785 import CanonicalizationError

from hansa.contract.digests import canonical, in_bundle
from hansa.contract.errors import HansaError, Reason
from hansa.contract.strict import strict_json

MANIFEST_FILE: Final = "manifest.json"
LISTING_BYTES: Final = 1 << 20
BUNDLE_BYTES: Final = 16 << 20
BUNDLE_DEPTH: Final = 8
PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_KEYS: Final = {"path", "sha256", "size"}


@dataclass(frozen=True, slots=True)
class ListedFile:
    """What the list says of one file; ``sha256`` is hex."""

    sha256: str
    size: int


def parse_listing(data: bytes) -> Mapping[str, ListedFile]:
    """Return the files that ``data`` lists, by path.

    Only the one form that ``digests.bundle_listing`` writes is taken, with
    plain paths in order, a manifest among them, and no more than 16 MiB.

    Raises:
        HansaError: ``MANIFEST_INVALID``.
    """
    if len(data) > LISTING_BYTES:
        raise _invalid(f"it is over {LISTING_BYTES} bytes")
    try:
        value = strict_json(data)
        entries = value["files"]
        found = {_path(entry): _file(entry) for entry in entries}
        one_form = canonical({"v": 1, "files": entries}) == data
    except (ValueError, LookupError, TypeError, RecursionError, CanonicalizationError) as error:
        raise _invalid("it is no list of files") from error
    if not one_form or len(found) != len(entries) or list(found) != sorted(found):
        raise _invalid("it is not in its one form")
    if not _apart(found):
        raise _invalid("two files would be one where case does not count, or one is a folder too")
    if MANIFEST_FILE not in found or sum(file.size for file in found.values()) > BUNDLE_BYTES:
        raise _invalid(f"it has no {MANIFEST_FILE}, or over {BUNDLE_BYTES >> 20} MiB")
    return found


def _apart(paths: Iterable[str]) -> bool:
    """Say whether every path stays a file of its own on any file system."""
    files = [path.lower() for path in paths]
    folders = {path[:end] for path in files for end, letter in enumerate(path) if letter == "/"}
    return len(set(files)) == len(files) and folders.isdisjoint(files) and _one_spelling(paths)


def _one_spelling(paths: Iterable[str]) -> bool:
    folders = {path[:end] for path in paths for end, letter in enumerate(path) if letter == "/"}
    return len({folder.lower() for folder in folders}) == len(folders)


def _path(entry: Any) -> str:
    if not isinstance(entry, dict) or entry.keys() != _KEYS or not isinstance(entry["path"], str):
        raise ValueError("not an entry of a file")
    path = entry["path"]
    parts = path.split("/")
    if len(parts) > BUNDLE_DEPTH or not all(PLAIN_NAME.fullmatch(part) for part in parts) or not in_bundle(path):
        raise ValueError("not a plain path of a bundle")
    return path


def _file(entry: Mapping[str, Any]) -> ListedFile:
    size = entry["size"]
    if type(size) is not int or size < 0 or not _SHA256.fullmatch(entry["sha256"]):
        raise ValueError("no digest or no size")
    return ListedFile(entry["sha256"], size)


def _invalid(words: str) -> HansaError:
    return HansaError(Reason.MANIFEST_INVALID, f"The bundle's list cannot be used: {words}.", field="bundle")
