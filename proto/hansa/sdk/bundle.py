"""Analyses in folders: as their author wrote them, and as bundles that people sign.

A bundle's folder has the analysis in ``files/``, ``author.dsse.json``, and
``votes/<reviewer>.dsse.json``; it is what authors and reviewers pass on.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hansa.contract.digests import bundle_digest, in_bundle
from hansa.contract.envelope import ENVELOPE_BYTES, Signed, from_json, to_json
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import PERSON_NAME
from hansa.contract.listing import BUNDLE_BYTES, BUNDLE_DEPTH, MANIFEST_FILE, PLAIN_NAME
from hansa.contract.manifest import Manifest, parse_manifest
from hansa.runtime.durable import write_durably
from hansa.trust.bundles import SignedBundle
from hansa.trust.files import read_bounded

_FILES: Final = "files"
_AUTHOR: Final = "author.dsse.json"
_VOTES: Final = "votes"
_SUFFIX: Final = ".dsse.json"
_MODE: Final = 0o644


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
            if size > BUNDLE_BYTES:
                raise _invalid(f"{folder} is over {BUNDLE_BYTES >> 20} MiB.")
    except OSError as error:
        raise _invalid(f"{folder} cannot be read: {error.strerror}.") from error
    return files


def write_bundle(folder: Path, bundle: SignedBundle) -> None:
    """Write ``bundle`` into ``folder``, which is new.

    Raises:
        HansaError: ``FILE_INVALID``; the folder is there already, or cannot be written.
    """
    contents = {f"{_FILES}/{path}": data for path, data in bundle.files.items()}
    contents[_AUTHOR] = to_json(bundle.authorship)
    try:
        folder.mkdir(parents=True)
        for path, data in contents.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_durably(folder / path, data, mode=_MODE)
    except FileExistsError as error:
        raise _invalid(f"{folder} is there already; a changed analysis is another bundle.") from error
    except OSError as error:
        raise _invalid(f"{folder} cannot be written: {error.strerror}.") from error
    for vote in bundle.votes.values():
        write_vote(folder, vote)


def write_vote(folder: Path, vote: Signed) -> None:
    """Put a vote into the bundle's ``folder``, in place of an earlier one of that reviewer.

    Raises:
        HansaError: ``FILE_INVALID``; it cannot be written.
    """
    try:
        (folder / _VOTES).mkdir(exist_ok=True)
        write_durably(folder / _VOTES / f"{vote.key_id}{_SUFFIX}", to_json(vote), mode=_MODE)
    except OSError as error:
        raise _invalid(f"{folder} cannot be written: {error.strerror}.") from error


def read_signed_bundle(folder: Path) -> SignedBundle:
    """Return the bundle in ``folder``; its signatures are not verified here.

    Raises:
        HansaError: ``FILE_INVALID``, ``MANIFEST_INVALID`` or ``ENVELOPE_INVALID``.
    """
    if not (folder / _FILES).is_dir():
        raise _invalid(f"{folder} is no bundle; see `hansa analysis build`.")
    votes = {}
    for path in sorted((folder / _VOTES).glob(f"*{_SUFFIX}")):
        reviewer = path.name.removesuffix(_SUFFIX)
        if not PERSON_NAME.fullmatch(reviewer):
            raise _invalid(f"{path.name!a} is no vote of anybody.")
        votes[reviewer] = from_json(read_bounded(path, ENVELOPE_BYTES))
    author = from_json(read_bounded(folder / _AUTHOR, ENVELOPE_BYTES))
    return SignedBundle(read_bundle(folder / _FILES), author, votes)


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    with os.scandir(folder / prefix) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = f"{prefix}{entry.name}"
        if not in_bundle(path):
            continue
        mode = entry.stat(follow_symlinks=False).st_mode
        if not PLAIN_NAME.fullmatch(entry.name) or path.count("/") >= BUNDLE_DEPTH:
            raise _invalid(f"{path!a} is not a plain name.")
        if stat.S_ISDIR(mode):
            yield from _walk(folder, f"{path}/")
        elif stat.S_ISREG(mode):
            yield path
        else:
            raise _invalid(f"{path} is neither a file nor a folder.")


def _invalid(words: str) -> HansaError:
    return HansaError(Reason.FILE_INVALID, words, field="folder")
