"""The key ceremony: who signs the root and the targets, and when that is enough.

Signers come one after the other, each with a copy of the working folder and a
key of their own. A version that is changed after somebody signed it is another
one, with no signatures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from hansa.contract import trust_paths
from hansa.contract.digests import digest
from hansa.contract.directory import Directory
from hansa.contract.errors import HansaError, Reason
from hansa.trust.bundles import check_targets
from hansa.trust.draft import Draft
from hansa.trust.edits import differences
from hansa.trust.files import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, RepositoryFiles
from hansa.trust.signing import (
    RootPlan,
    add_signature,
    holder_of,
    metadata_bytes,
    new_root,
    new_targets,
    plan_of,
    signed_by,
)
from hansa.trust.verification import key_identity

_OFFLINE: Final = (ROOT, TARGETS)


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """Where one version of a role stands. ``missing`` may still sign; ``needed`` of them have to."""

    role: str
    version: int
    expires: datetime
    in_force: bool
    threshold: int
    signed: tuple[str, ...]
    missing: tuple[str, ...]
    needed: int


@dataclass(frozen=True, slots=True)
class Status:
    """Where a working folder stands. ``changes`` is what signers of the next targets sign."""

    federation: str
    directory_version: int
    roles: tuple[RoleStatus, ...]
    online: tuple[tuple[str, str], ...]
    changes: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether everything in the draft was signed by enough."""
        return bool(self.roles) and all(role.in_force for role in self.roles)


def begin(draft: Draft, plan: RootPlan, directory: Directory, now: datetime) -> None:
    """Start a repository: the first root, to be signed, and a directory.

    Raises:
        HansaError: ``FILE_INVALID``, there is one in the folder; ``TRUST_INVALID``,
            the plan cannot be.
    """
    if draft.exists():
        raise HansaError(Reason.FILE_INVALID, f"{draft.folder} holds a trust repository already.", field="repo")
    root = new_root(plan, version=1, now=now)
    draft.start(directory)
    draft.keep_pending(ROOT, root)


def rotate(draft: Draft, plan: RootPlan, now: datetime) -> None:
    """Begin the root that follows, with ``plan``; thresholds of the old and of the new one have to sign it.

    Raises:
        HansaError: ``TRUST_INVALID``.
    """
    draft.check()
    root = draft.root()
    draft.keep_pending(ROOT, new_root(plan, version=1 if root is None else root.signed.version + 1, now=now))
    if root is not None:
        _settle(draft)


def current_plan(draft: Draft) -> RootPlan:
    """Return the plan of the root that is being signed, or else of the one in force.

    Raises:
        HansaError: ``FILE_INVALID``, ``TRUST_INVALID``.
    """
    draft.check()
    return plan_of(_newest_root(draft).signed)


def renew(draft: Draft, now: datetime) -> None:
    """Begin a new version of the targets with the same content, to be signed before the old one expires."""
    draft.check()
    draft.keep_pending(TARGETS, _fresh_targets(draft, draft.contents(), now))


def sign(draft: Draft, signer: Signer, now: datetime) -> list[str]:
    """Add the signature of ``signer`` wherever its key belongs.

    Returns:
        What was signed: ``root 2``, ``targets 5``.

    Raises:
        HansaError: ``KEY_INVALID``, the key is of no role that waits for a
            signature; or why nobody could use the draft: ``DIRECTORY_INVALID``,
            ``MANIFEST_INVALID``, ``ENVELOPE_INVALID``, ``TRUST_INVALID``.
    """
    draft.check()
    keyid = signer.public_key.keyid
    check_targets(draft.contents())
    pending = draft.next_root()
    roots = [root.signed for root in (draft.root(), pending) if root is not None]
    signed: list[str] = []
    if pending is not None and any(keyid in root.roles[ROOT].keyids for root in roots):
        add_signature(pending, signer)
        draft.keep_pending(ROOT, pending)
        signed.append(f"{ROOT} {pending.signed.version}")
    targets = pending_targets(draft, now)
    if targets is not None and any(keyid in root.roles[TARGETS].keyids for root in roots):
        add_signature(targets, signer)
        draft.keep_pending(TARGETS, targets)
        signed.append(f"{TARGETS} {targets.signed.version}")
    if not signed:
        raise HansaError(
            Reason.KEY_INVALID, "Nothing here waits for a signature of this key; see `hansa trust status`.", field="key"
        )
    _settle(draft)
    return signed


def key_held_by(draft: Draft, holder: str) -> Key:
    """Return the public key of the root that ``holder`` has.

    Raises:
        HansaError: ``KEY_INVALID``; there is not exactly one.
    """
    draft.check()
    roots = [root.signed for root in (draft.root(), draft.next_root()) if root is not None]
    offline = {keyid for root in roots for role in _OFFLINE for keyid in root.roles[role].keyids}
    found = {keyid: key for root in roots for keyid, key in root.keys.items() if keyid in offline}
    keys = [key for key in found.values() if holder_of(key) == holder or key.keyid == holder]
    if len(keys) != 1:
        raise HansaError(Reason.KEY_INVALID, f"The root has {len(keys)} keys of {holder[:64]!a}.", field="as")
    return keys[0]


def pending_targets(draft: Draft, now: datetime) -> Metadata[Targets] | None:
    """Return the targets metadata that the draft needs, with its signatures; None where the one in force is good."""
    contents = draft.contents()
    fresh = _fresh_targets(draft, contents, now)
    pending = draft.next_targets()
    if (
        pending is not None
        and pending.signed.targets == fresh.signed.targets
        and (pending.signed.version, pending.signed.expires > now) == (fresh.signed.version, True)
    ):
        return pending
    current = draft.targets()
    if current is not None and current.signed.targets == fresh.signed.targets and _enough(current, draft):
        return None
    return fresh


def publishable(draft: Draft, now: datetime) -> RepositoryFiles:
    """Return the files that the coordinator is to put in force.

    Raises:
        HansaError: ``TRUST_THRESHOLD``; the draft has what too few have signed.
    """
    state = status(draft, now)
    for role in state.roles:
        if not role.in_force:
            names = ", ".join(role.missing) or "nobody is left"
            raise HansaError(
                Reason.TRUST_THRESHOLD,
                f"{role.role} {role.version} needs {role.needed} more signatures; not signed by: {names}.",
                field=role.role,
            )
    return draft.signed()


def status(draft: Draft, now: datetime) -> Status:
    """Return where the working folder stands."""
    draft.check()
    directory = draft.directory
    newest = _newest_root(draft).signed
    online = tuple((role, newest.roles[role].keyids[0]) for role in (SNAPSHOT, TIMESTAMP))
    return Status(
        federation=directory.federation,
        directory_version=directory.version,
        roles=(_root_status(draft), _targets_status(draft, now)),
        online=online,
        changes=tuple(_changes(draft, directory)),
    )


def _root_status(draft: Draft) -> RoleStatus:
    pending, current = draft.next_root(), draft.root()
    if pending is None:
        if current is None:
            raise HansaError(Reason.TRUST_INVALID, "The repository has no root.")
        return _role_status(current, ROOT, [current.signed], in_force=True)
    judges = [root.signed for root in (current, pending) if root is not None]
    return _role_status(pending, ROOT, judges, in_force=False)


def _targets_status(draft: Draft, now: datetime) -> RoleStatus:
    judge, pending = _newest_root(draft).signed, pending_targets(draft, now)
    if pending is not None:
        return _role_status(pending, TARGETS, [judge], in_force=False)
    current = draft.targets()
    if current is None:
        raise HansaError(Reason.TRUST_INVALID, "The repository has no targets.")
    return _role_status(current, TARGETS, [judge], in_force=True)


def _role_status(metadata: Metadata[Any], role: str, judges: Sequence[Root], *, in_force: bool) -> RoleStatus:
    results = [signed_by(metadata, role, root) for root in judges]
    signed = {key.keyid: holder_of(key) for keys, _ in results for key in keys}
    missing = {key.keyid: holder_of(key) for _, keys in results for key in keys}
    needed = [root.roles[role].threshold - len(keys) for root, (keys, _) in zip(judges, results, strict=True)]
    return RoleStatus(
        role=role,
        version=metadata.signed.version,
        expires=metadata.signed.expires,
        in_force=in_force,
        threshold=judges[-1].roles[role].threshold,
        signed=tuple(sorted(signed.values())),
        missing=tuple(sorted(missing.values())),
        needed=max(0, *needed),
    )


def _root_changes(current: Metadata[Root] | None, pending: Metadata[Root] | None) -> Iterator[str]:
    """Yield, in words, what a signer of a root puts their name to: whose keys count for what, and how many."""
    if pending is None:
        return
    for role in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP):
        told = _keys_told(pending.signed, role)
        if current is None or _keys_told(current.signed, role) != told:
            yield f"root {pending.signed.version}: {told}"


def _keys_told(root: Root, role: str) -> str:
    # By the digest that people compare; the name beside it is only what the draft says.
    keys = [root.keys[keyid] for keyid in root.roles[role].keyids]
    told = sorted(f"{digest(key_identity(key))} ({ascii(holder_of(key))[1:-1][:64]})" for key in keys)
    return f"{role} takes {root.roles[role].threshold} of {', '.join(told)}"


def _changes(draft: Draft, directory: Directory) -> Iterator[str]:
    yield from _root_changes(draft.root(), draft.next_root())
    yield from sorted(differences(draft.published_directory(), directory))
    current = draft.targets()
    before = {} if current is None else {path: info.hashes["sha256"] for path, info in current.signed.targets.items()}
    after = {path: hashlib.sha256(data).hexdigest() for path, data in draft.contents().items()}
    for path in sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path)):
        if path.startswith("analyses/"):
            verb = "added" if path not in before else "removed" if path not in after else "changed"
            yield f"{verb} {path}"


def _newest_root(draft: Draft) -> Metadata[Root]:
    root = draft.next_root() or draft.root()
    if root is None:
        raise HansaError(Reason.TRUST_INVALID, "The repository has no root.")
    return root


def _fresh_targets(draft: Draft, contents: dict[str, bytes], now: datetime) -> Metadata[Targets]:
    if trust_paths.DIRECTORY not in contents:
        raise HansaError(Reason.TRUST_INVALID, "The draft has no directory.")
    current = draft.targets()
    return new_targets(
        contents,
        version=1 if current is None else current.signed.version + 1,
        expires=now + plan_of(_newest_root(draft).signed).targets_life,
    )


def _enough(targets: Metadata[Targets], draft: Draft) -> bool:
    """Say whether the newest root in force accepts ``targets``."""
    root = draft.root()
    if root is None:
        return False
    try:
        root.signed.verify_delegate(TARGETS, targets.signed_bytes, targets.signatures)
    except RepositoryError:
        return False
    return True


def _settle(draft: Draft) -> None:
    """Put in force what enough have signed: the root first, then the targets under it."""
    pending, current = draft.next_root(), draft.root()
    if pending is not None:
        judges = [root.signed for root in (current, pending) if root is not None]
        try:
            for judge in judges:
                judge.verify_delegate(ROOT, pending.signed_bytes, pending.signatures)
        except RepositoryError:
            return
        draft.complete(ROOT, pending, {})
    targets, contents = draft.next_targets(), draft.contents()
    if targets is None or not _enough(targets, draft):
        return
    if targets.signed.targets == new_targets(contents, version=1, expires=targets.signed.expires).signed.targets:
        draft.complete(TARGETS, targets, contents)


def root_bytes(draft: Draft) -> bytes:
    """Return the newest root in force, as it is published.

    Raises:
        HansaError: ``TRUST_THRESHOLD``; there is none yet.
    """
    root = draft.root()
    if root is None:
        raise HansaError(Reason.TRUST_THRESHOLD, "The first root is not signed by enough.", field=ROOT)
    return metadata_bytes(root)
