"""An analysis bundle with its author's and reviewers' envelopes, as targets of the repository."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from hansa.contract import trust_paths
from hansa.contract.digests import bundle_listing, digest
from hansa.contract.directory import parse_directory
from hansa.contract.envelope import AUTHORSHIP_TYPE, VOTE_TYPE, Signed, from_json, sign, to_json
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import AnalysisRef
from hansa.contract.listing import MANIFEST_FILE, parse_listing
from hansa.contract.manifest import parse_manifest
from hansa.contract.review import Authorship, Vote

_M = TypeVar("_M", Authorship, Vote)


@dataclass(frozen=True, slots=True)
class SignedBundle:
    """The files of an analysis by path, who wrote it, and the votes by reviewer."""

    files: Mapping[str, bytes]
    authorship: Signed
    votes: Mapping[str, Signed] = field(default_factory=dict)

    @property
    def ref(self) -> AnalysisRef:
        """The analysis by name, version and digest."""
        return ref_of(self.files)

    def targets(self) -> dict[str, bytes]:
        """Return the targets by path."""
        ref = self.ref
        found = {trust_paths.blob_path(hashlib.sha256(data).hexdigest()): data for data in self.files.values()}
        found[trust_paths.bundle_path(ref.name, ref.version)] = bundle_listing(self.files)
        found[trust_paths.authorship_path(ref.name, ref.version)] = to_json(self.authorship)
        for reviewer, vote in self.votes.items():
            found[trust_paths.vote_path(ref.name, ref.version, reviewer)] = to_json(vote)
        return found


def ref_of(files: Mapping[str, bytes]) -> AnalysisRef:
    """Return the analysis that ``files`` are.

    Raises:
        HansaError: ``MANIFEST_INVALID``.
    """
    if MANIFEST_FILE not in files:
        raise HansaError(Reason.MANIFEST_INVALID, f"The bundle has no {MANIFEST_FILE}.", field="manifest")
    manifest = parse_manifest(files[MANIFEST_FILE])
    if manifest.snakefile not in files:
        raise HansaError(Reason.MANIFEST_INVALID, f"The bundle has no {manifest.snakefile}.", field="snakefile")
    listing = bundle_listing(files)
    parse_listing(listing)
    return AnalysisRef(name=manifest.name, version=manifest.version, digest=digest(listing))


def sign_authorship(ref: AnalysisRef, author: str, key: Ed25519PrivateKey, at: datetime) -> Signed:
    """Return the envelope with which ``author`` puts their name to ``ref``.

    Raises:
        HansaError: ``VOTE_INVALID``; the name is no person's.
    """
    claim = _made(Authorship, {"analysis": ref, "author": author, "at": at})
    return sign(AUTHORSHIP_TYPE, claim.to_bytes(), key_id=author, key=key)


def sign_vote(ref: AnalysisRef, said: Mapping[str, str], key: Ed25519PrivateKey, at: datetime) -> Signed:
    """Return a reviewer's vote on ``ref`` in their envelope.

    Args:
        ref: the analysis, by digest.
        said: ``reviewer``, ``verdict`` (``approve`` or ``reject``) and ``comment``.
        key: the reviewer's.
        at: aware UTC time.

    Raises:
        HansaError: ``VOTE_INVALID``, naming the first field at fault.
    """
    vote = _made(Vote, {"analysis": ref, "at": at, **said})
    return sign(VOTE_TYPE, vote.to_bytes(), key_id=vote.reviewer, key=key)


def _made(model: type[_M], values: Mapping[str, object]) -> _M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise HansaError(Reason.VOTE_INVALID, f"{first['msg']}.", field=field) from error


def check_targets(contents: Mapping[str, bytes]) -> None:
    """Return if every target of ``contents`` (by path) is one that a node can use.

    Raises:
        HansaError: ``DIRECTORY_INVALID``, ``MANIFEST_INVALID``,
            ``ENVELOPE_INVALID``, ``TRUST_INVALID`` (a file that belongs to nothing).
    """
    parse_directory(contents.get(trust_paths.DIRECTORY, b""))
    used = {trust_paths.DIRECTORY}
    for path in contents:
        if (found := trust_paths.analysis_of(path)) is not None:
            used |= _check_bundle(contents, *found)
    for path in contents.keys() - used:
        raise HansaError(Reason.TRUST_INVALID, f"{path[:200]!a} belongs to no analysis.", field="repo")


def _check_bundle(contents: Mapping[str, bytes], name: str, version: str) -> set[str]:
    """Return the targets that belong to a bundle."""
    place = trust_paths.bundle_path(name, version)
    blobs = {path: trust_paths.blob_path(listed.sha256) for path, listed in parse_listing(contents[place]).items()}
    files = {path: contents.get(blob, b"") for path, blob in blobs.items()}
    if bundle_listing(files) != contents[place]:
        raise HansaError(Reason.MANIFEST_INVALID, f"A file of {name}@{version} is missing or changed.", field="bundle")
    ref = ref_of(files)
    if (ref.name, ref.version) != (name, version):
        raise HansaError(Reason.MANIFEST_INVALID, f"{place} is of another analysis.", field="bundle")
    votes = trust_paths.votes_of(name, version)
    envelopes = {trust_paths.authorship_path(name, version), *(path for path in contents if votes.fullmatch(path))}
    for path in envelopes & contents.keys():
        from_json(contents[path])
    return {place, *blobs.values(), *envelopes}
