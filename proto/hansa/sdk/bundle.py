"""Reads an analysis' folder as the bundle that its digest names."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hansa.contract.digests import bundle_digest, in_bundle
from hansa.contract.errors import HansaError, Reason
from hansa.contract.manifest import Manifest, parse_manifest

MANIFEST_FILE: Final = "manifest.json"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_BUNDLE_BYTES: Final = 16 << 20
_MOST_DEPTH: Final = 8


@dataclass(frozen=True, slots=True)
class Bundle:
    """An analysis as its folder holds it."""

    manifest: Manifest
    manifest_bytes: bytes
    digest: str


def load_bundle(folder: Path) -> Bundle:
    """Return the bundle in ``folder``.

    Raises:
        HansaError: ``FILE_INVALID`` as in ``read_bundle``; ``MANIFEST_INVALID``
            where the manifest is missing, is not valid or names a Snakefile
            that is not there.
    """
    files = read_bundle(folder)
    data = files.get(MANIFEST_FILE)
    if data is None:
        raise HansaError(Reason.MANIFEST_INVALID, f"{folder} has no {MANIFEST_FILE}.", field="manifest")
    manifest = parse_manifest(data)
    if manifest.snakefile not in files:
        raise HansaError(Reason.MANIFEST_INVALID, f"{folder} has no {manifest.snakefile}.", field="snakefile")
    return Bundle(manifest, data, bundle_digest(files))


def read_bundle(folder: Path) -> Mapping[str, bytes]:
    """Return the content of the bundle's files by path relative to ``folder``.

    Raises:
        HansaError: ``FILE_INVALID``; the folder cannot be read, is over
            16 MiB, or holds anything but plain files and folders with plain
            names: a link could name another file at each node.
    """
    files: dict[str, bytes] = {}
    size = 0
    try:
        for path in _walk(folder, ""):
            files[path] = (folder / path).read_bytes()
            size += len(files[path])
            if size > _BUNDLE_BYTES:
                raise _invalid(f"{folder} is over {_BUNDLE_BYTES >> 20} MiB.")
    except OSError as error:
        raise _invalid(f"{folder} cannot be read: {error.strerror}.") from error
    return files


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    with os.scandir(folder / prefix) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = f"{prefix}{entry.name}"
        if not in_bundle(path):
            continue
        mode = entry.stat(follow_symlinks=False).st_mode
        if not _NAME.fullmatch(entry.name) or path.count("/") >= _MOST_DEPTH:
            raise _invalid(f"{path!a} is not a plain name.")
        if stat.S_ISDIR(mode):
            yield from _walk(folder, f"{path}/")
        elif stat.S_ISREG(mode):
            yield path
        else:
            raise _invalid(f"{path} is neither a file nor a folder.")


def _invalid(words: str) -> HansaError:
    return HansaError(Reason.FILE_INVALID, words, field="folder")
