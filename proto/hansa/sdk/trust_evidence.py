"""What the trust repository in a job's evidence says, verified from the verifier's own root.

Expiry is not judged here: evidence is read years later. Who verifies compares
``expires`` with the time of each release.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from hansa.contract.errors import HansaError, Reason
from hansa.sdk.evidence import METADATA, TARGETS
from hansa.trust.files import METADATA_NAME, ROOT, FilesSource, RepositoryFiles, metadata_name
from hansa.trust.repository import make_view
from hansa.trust.signing import metadata_bytes
from hansa.trust.verification import Trusted, verify_metadata
from hansa.trust.view import TrustView

# Before any metadata was made, so that nothing has expired.
_BEFORE_ALL: Final = datetime(1970, 1, 1, tzinfo=UTC)


def trust_of(files: Mapping[str, bytes], root: bytes) -> TrustView:
    """Return what the repository in ``files`` says.

    Args:
        files: the evidence by name; what is not of the repository is not
            looked at.
        root: the verifier's own root metadata.

    Raises:
        HansaError: ``EVIDENCE_INVALID`` with the file as ``field``.
    """
    repository = RepositoryFiles(_below(files, METADATA), _below(files, TARGETS))
    for sha256, content in repository.targets.items():
        if hashlib.sha256(content).hexdigest() != sha256:
            raise _wrong(TARGETS + sha256, "Its content is not what its name says.")
    source = _Watched(repository)
    try:
        trusted = verify_metadata(source, root=root, known={}, now=_BEFORE_ALL)
    except HansaError as error:
        raise _wrong(METADATA + source.last, error.public) from error
    _check_each(repository.metadata, trusted, root)
    try:
        view = make_view(trusted, source, past=None, whole=False)
    except HansaError as error:
        raise _wrong(source.last_target, error.public) from error
    for sha256 in sorted(repository.targets.keys() - set(view.targets.values())):
        raise _wrong(TARGETS + sha256, "The signed metadata knows no such file.")
    return view


class _Watched(FilesSource):
    """Remembers which file was read last: the one at fault, if verification ends there."""

    def __init__(self, files: RepositoryFiles) -> None:
        super().__init__(files)
        self.last = metadata_name("timestamp", 0)
        self.last_target = METADATA + self.last
        self._files_here = files

    def metadata(self, role: str, version: int, most_bytes: int) -> bytes:
        """Return a role's metadata."""
        name = metadata_name(role, version)
        # The workflow asks for a next root until there is none.
        if role != ROOT or name in self._files_here.metadata:
            self.last = name
        return super().metadata(role, version, most_bytes)

    def target(self, path: str, sha256: str, most_bytes: int) -> bytes:
        """Return the target of this digest."""
        self.last_target = TARGETS + sha256
        return super().target(path, sha256, most_bytes)


def _check_each(metadata: Mapping[str, bytes], trusted: Trusted, root: bytes) -> None:
    """Check that each file is in its one form, and that each signature in it is good.

    A threshold asks for some good signatures; evidence in which others are
    spoilt has been tampered with. Roots before the verifier's own are passed over.
    """
    pinned = Metadata[Root].from_bytes(root).signed
    keys: dict[str, Key] = dict(pinned.keys)
    for version in range(pinned.version, trusted.root.version + 1):
        name = metadata_name(ROOT, version)
        if version == pinned.version:
            if metadata.get(name, root) != root:
                raise _wrong(METADATA + name, "It is another root than the verifier's own.")
            continue
        known = Metadata[Root].from_bytes(metadata[name])
        _check_one(name, metadata[name], {**keys, **known.signed.keys})
        keys = dict(known.signed.keys)
    for name, data in metadata.items():
        match = METADATA_NAME.fullmatch(name)
        if match is not None and match["role"] == ROOT:
            if int(match["version"]) > trusted.root.version:
                raise _wrong(METADATA + name, "No root before it vouches for it.")
        elif trusted.metadata.get(name) != data:
            raise _wrong(METADATA + name, "The metadata that is in force does not name it.")
        else:
            _check_one(name, data, trusted.root.keys)


def _check_one(name: str, data: bytes, keys: Mapping[str, Key]) -> None:
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
    except RepositoryError as error:
        raise _wrong(METADATA + name, "It cannot be read.") from error
    if metadata_bytes(metadata) != data:
        raise _wrong(METADATA + name, "It is not in its one form.")
    for signature in metadata.signatures.values():
        key = keys.get(signature.keyid)
        if key is None or signature.signature != signature.signature.lower():
            raise _wrong(METADATA + name, "A signature in it is of a key that the root does not name.")
        try:
            key.verify_signature(signature, metadata.signed_bytes)
        except UnverifiedSignatureError as error:
            raise _wrong(METADATA + name, "A signature in it is not good.") from error


def _below(files: Mapping[str, bytes], folder: str) -> dict[str, bytes]:
    return {name.removeprefix(folder): data for name, data in files.items() if name.startswith(folder)}


def _wrong(name: str, words: str) -> HansaError:
    return HansaError(Reason.EVIDENCE_INVALID, f"{name}: {words}", field=name)
