"""The trust repository at the coordinator: verified like at everybody's, mirrored, kept fresh.

The coordinator decides nothing here. It checks what signers have signed, puts
a version in force whole, and says with its two on-line keys which the newest is.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

import structlog
from sqlalchemy.orm import Session
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Targets, Timestamp

from coordinator.domain.frames import TrustUpdate
from coordinator.domain.membership import NodeState
from coordinator.services.desk import Changed, Desk, Turn
from coordinator.services.nodes import Act
from coordinator.store.audit import AuditRepository
from coordinator.store.catalogue import Analysis, AnalysisRepository
from coordinator.store.nodes import NodeRepository
from coordinator.store.outboxes import CommandRepository
from coordinator.store.persons import Person, PersonRepository
from coordinator.store.trust import TrustRepository, TrustState
from hansa.contract.directory import Directory, parse_directory
from hansa.contract.errors import HansaError, Reason
from hansa.contract.trust_paths import DIRECTORY
from hansa.trust.files import ROOT, TARGETS, TIMESTAMP, RepositoryFiles, metadata_name
from hansa.trust.online import TIMESTAMP_RENEWAL, OnlineKeys, check_online_keys, renew_online
from hansa.trust.repository import KnownDirectory, make_view
from hansa.trust.verification import refusal_of, verify_metadata
from hansa.trust.view import TrustView

_log = structlog.get_logger(__name__)

# Who keeps a session or will again; the others look when they first attach.
_TOLD: Final = (NodeState.ACTIVE, NodeState.SUSPENDED, NodeState.QUARANTINED)
_AFTER_A_FAILURE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class TrustDuty:
    """What the coordinator answers for: its federation, its on-line keys, its log's key (as a directory has it)."""

    federation: str
    online: OnlineKeys
    log_key: str


def begin_trust(session: Session, files: RepositoryFiles, duty: TrustDuty, act: Act) -> TrustView:
    """Put a repository in force in a store that has none, and pin its newest root.

    Raises:
        HansaError: ``TRUST_…``, ``DIRECTORY_INVALID`` or ``KEY_INVALID``; see
            ``put_in_force``.
    """
    oldest = min(_root_versions(files), default=0)
    first = files.metadata_file(ROOT, oldest)
    view = _take(session, _Candidate(files, first, pinned=files.newest(ROOT)), duty, act)
    if view.root_version != files.newest(ROOT):
        raise HansaError(Reason.TRUST_INVALID, "The newest root does not follow from the first.", field="root")
    return view


def federation_of(files: RepositoryFiles) -> str:
    """Return the federation that the newest directory in ``files`` names; nothing is verified.

    Raises:
        HansaError: ``TRUST_INVALID``, ``TRUST_UNKNOWN`` or ``DIRECTORY_INVALID``.
    """
    try:
        targets = Metadata[Targets].from_bytes(files.metadata_file(TARGETS)).signed
    except RepositoryError as error:
        raise refusal_of(error) from error
    listed = targets.targets.get(DIRECTORY)
    if listed is None:
        raise HansaError(Reason.TRUST_UNKNOWN, "The trust repository has no directory.", field="targets")
    return parse_directory(files.target_file(listed.hashes.get("sha256", ""))).federation


def put_in_force(
    session: Session, files: RepositoryFiles, duty: TrustDuty, *, act: Act, turn: Turn
) -> tuple[TrustState, Changed]:
    """Verify a new version from the pinned root on, and put all of it in force, or nothing.

    Args:
        session: the transaction.
        files: those that are new; nothing of them is believed.
        duty: what the coordinator signs with and answers for.
        act: who publishes.
        turn: writes the nodes' commands.

    Raises:
        HansaError: ``TRUST_…`` or ``DIRECTORY_INVALID``; ``KEY_INVALID``, root
            or directory name other keys than this coordinator has.
    """
    mirror = TrustRepository(session)
    before = state_in_force(session)
    known = mirror.all_metadata()
    if any(known.get(name, data) != data for name, data in files.metadata.items()):
        raise HansaError(Reason.TRUST_ROLLBACK, "Another file of this name and version is in force.", field="name")
    if files.metadata.keys() <= known.keys():
        return before, Changed()
    pinned = mirror.metadata(ROOT, before.pinned_root) or b""
    _take(session, _Candidate(files, pinned, pinned=before.pinned_root, known=known), duty, act)
    told = _tell_nodes(session, turn)
    return state_in_force(session), Changed(outboxes=told, trust=True)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What may come into force: new files on top of the mirror's metadata, judged from a root on."""

    files: RepositoryFiles
    root: bytes
    pinned: int
    known: Mapping[str, bytes] | None = None


def _take(session: Session, candidate: _Candidate, duty: TrustDuty, act: Act) -> TrustView:
    mirror = TrustRepository(session)
    before = mirror.state()
    known = candidate.known or {}
    files = _online(candidate.files.merged(known, {}), duty, act)
    source = _Mirror(files, mirror)
    trusted = verify_metadata(source, root=candidate.root, known=known, now=act.now)
    past = None if before is None else KnownDirectory(before.directory_version, before.directory_sha256)
    view = make_view(trusted, source, past=past)
    _check_duty(view, duty)
    _check_complete(view, files, mirror)
    state = TrustState(
        pinned_root=candidate.pinned,
        root_version=view.root_version,
        targets_version=view.targets_version,
        snapshot_version=view.snapshot_version,
        timestamp_version=view.timestamp_version,
        directory_version=view.directory.version,
        directory_sha256=view.directory_sha256,
        in_force_at=act.now,
    )
    wanted = set(view.targets.values())
    mirror.put(state, files.metadata, {sha256: data for sha256, data in files.targets.items() if sha256 in wanted})
    _project(session, view)
    _record(session, view, act)
    return view


def _online(files: RepositoryFiles, duty: TrustDuty, act: Act) -> RepositoryFiles:
    """Return ``files`` with snapshot and timestamp, which leave this process only if all of it verifies."""
    try:
        return renew_online(files, duty.online, act.now)
    except RepositoryError as error:
        raise refusal_of(error) from error


class _Mirror:
    """New files, and behind them the mirror's targets, as a ``Source``."""

    def __init__(self, files: RepositoryFiles, mirror: TrustRepository) -> None:
        self._files = files
        self._mirror = mirror

    def metadata(self, role: str, version: int, most_bytes: int) -> bytes:
        found = self._files.metadata_file(role, version)
        if len(found) > most_bytes:
            raise HansaError(Reason.TRUST_INVALID, f"The {role} metadata is over {most_bytes} bytes.", field=role)
        return found

    def target(self, path: str, sha256: str, most_bytes: int) -> bytes:  # noqa: ARG002 - in memory already
        found = self._files.targets.get(sha256)
        if found is None:  # an empty file is one too
            found = self._mirror.target(sha256)
        if found is None:
            raise HansaError(Reason.TRUST_UNKNOWN, f"The file of the target {path} is missing.", field="targets")
        return found


def _check_duty(view: TrustView, duty: TrustDuty) -> None:
    if view.directory.federation != duty.federation:
        raise HansaError(
            Reason.TRUST_INVALID, f"This is the trust repository of {view.directory.federation}.", field="federation"
        )
    if view.directory.coordinator_log_key != duty.log_key:
        raise HansaError(
            Reason.KEY_INVALID, "The directory names another key for the coordinator's log.", field="log_key"
        )
    check_online_keys(view.metadata[metadata_name(ROOT, view.root_version)], duty.online)


def _check_complete(view: TrustView, files: RepositoryFiles, mirror: TrustRepository) -> None:
    """Return if every target is here: a node must never look for one in vain."""
    here = mirror.target_digests() | files.targets.keys()
    for path, sha256 in view.targets.items():
        if sha256 not in here:
            raise HansaError(Reason.TRUST_UNKNOWN, f"The file of the target {path} is missing.", field="targets")


def _project(session: Session, view: TrustView) -> None:
    """Rewrite what others read of the repository: people, and approved analyses."""
    PersonRepository(session).replace_all(
        Person(person.name, person.organisation, person.roles, person.signing_key) for person in view.directory.people
    )
    AnalysisRepository(session).list_exactly(
        Analysis(analysis.name, analysis.version, analysis.digest, analysis.manifest)
        for analysis in view.analyses.values()
        if analysis.count.approved
    )


def _record(session: Session, view: TrustView, act: Act) -> None:
    subject = (
        f"directory {view.directory.version} sha256:{view.directory_sha256}, "
        f"root {view.root_version}, targets {view.targets_version}"
    )
    AuditRepository(session).append(at=act.now, actor=act.actor, action="trust_in_force", subject=subject)
    _log.info(
        "trust_in_force",
        actor=act.actor,
        directory=view.directory.version,
        root=view.root_version,
        targets=view.targets_version,
    )


def _tell_nodes(session: Session, turn: Turn) -> frozenset[str]:
    told = sorted(NodeRepository(session).in_states(_TOLD))
    commands = CommandRepository(session)
    for node in told:
        commands.append(node, turn.encode(TrustUpdate(), turn.now), turn.now)
    return frozenset(told)


def state_in_force(session: Session) -> TrustState:
    """Return which version is in force.

    Raises:
        HansaError: ``STATE_FOLDER_INVALID``; there is none.
    """
    state = TrustRepository(session).state()
    if state is None:
        raise HansaError(
            Reason.STATE_FOLDER_INVALID,
            "The store has no trust repository; begin the coordinator anew with `hansa-coordinator init --trust`.",
        )
    return state


def directory_in_force(session: Session) -> Directory:
    """Return the directory; it was verified when it came into force.

    Raises:
        HansaError: ``STATE_FOLDER_INVALID``; there is none.
    """
    state = state_in_force(session)
    data = TrustRepository(session).target(state.directory_sha256)
    if data is None:
        raise HansaError(Reason.INTERNAL, log="the directory's file is gone")
    return _read_directory(data)


@lru_cache(maxsize=4)
def _read_directory(data: bytes) -> Directory:
    return parse_directory(data)


def metadata_file(session: Session, role: str, version: int) -> bytes:
    """Return a role's metadata; what is in force when ``version`` is zero.

    Raises:
        HansaError: ``TRUST_UNKNOWN``.
    """
    mirror = TrustRepository(session)
    found = mirror.metadata(role, version or state_in_force(session).version_of(role))
    if found is None:
        raise HansaError(Reason.TRUST_UNKNOWN, field="version" if version else "role")
    return found


def target_file(session: Session, sha256: bytes) -> bytes:
    """Return the target with this SHA-256.

    Raises:
        HansaError: ``TRUST_UNKNOWN``.
    """
    found = TrustRepository(session).target(sha256.hex())
    if found is None:
        raise HansaError(Reason.TRUST_UNKNOWN, field="sha256")
    return found


def root_of_digest(session: Session, sha256: bytes) -> bytes:
    """Return the root metadata, of any version, with this SHA-256.

    Raises:
        HansaError: ``TRUST_UNKNOWN``.
    """
    found = TrustRepository(session).root_with_digest(sha256.hex())
    if found is None:
        raise HansaError(
            Reason.TRUST_UNKNOWN,
            "The invitation names a trust root that this coordinator does not have; ask for another invitation.",
            field="trust_root_digest",
        )
    return found


def pinned_root(session: Session) -> bytes:
    """Return the root metadata that a new member pins: the one that this coordinator trusted first."""
    return metadata_file(session, ROOT, state_in_force(session).pinned_root)


def renew_timestamp(session: Session, online: OnlineKeys, now: datetime, *, ahead: int = 0) -> TrustState:
    """Say that what is in force still is; with a new snapshot where one is due.

    Args:
        session: the transaction.
        online: the keys that sign it.
        now: aware UTC time.
        ahead: how many versions may have been given out that this store has forgotten.

    Raises:
        HansaError: ``KEY_INVALID``; the root names other on-line keys.
    """
    mirror = TrustRepository(session)
    state = state_in_force(session)
    files = renew_online(RepositoryFiles(mirror.all_metadata()), online, now, ahead=ahead)
    timestamp = Metadata[Timestamp].from_bytes(files.metadata_file(TIMESTAMP)).signed
    renewed = replace(state, snapshot_version=timestamp.snapshot_meta.version, timestamp_version=timestamp.version)
    mirror.put(renewed, files.metadata, {})
    return renewed


async def keep_fresh(desk: Desk, online: OnlineKeys) -> None:
    """Renew the timestamp at once and then hourly; runs until it is cancelled."""

    def work(session: Session) -> tuple[TrustState, Changed]:
        return renew_timestamp(session, online, desk.clock()), Changed()

    while True:
        pause = TIMESTAMP_RENEWAL
        try:
            state = await desk.commit(work)
            _log.info("timestamp_renewed", version=state.timestamp_version, snapshot=state.snapshot_version)
        except Exception:
            # The old one is good for hours; a coordinator that stops serves nobody.
            _log.exception("timestamp_not_renewed")
            pause = _AFTER_A_FAILURE
        await asyncio.sleep(pause.total_seconds())


def _root_versions(files: RepositoryFiles) -> list[int]:
    end = f".{ROOT}.json"
    return [int(name.removesuffix(end)) for name in files.metadata if name.endswith(end)]


class Delivery:
    """The files of a publication as they arrive, within bounds."""

    def __init__(self, is_name: Callable[[str], bool], most_bytes: int) -> None:
        """Take what a file may be called, and how much may come in all."""
        self._is_name = is_name
        self._left = most_bytes
        self._parts: dict[str, list[bytes]] = {}
        self._name = ""

    def add(self, name: str, chunk: bytes) -> None:
        """Take a chunk: of the file ``name``, or of the one before where that is empty.

        Raises:
            HansaError: ``MALFORMED``; a name that is none or came before, a
                chunk of no file, or too much in all.
        """
        if name:
            if name in self._parts or not self._is_name(name):
                raise HansaError(Reason.MALFORMED, "The files of a repository each come once.", field="name")
            self._name, self._parts[name] = name, []
        if not self._name:
            raise HansaError(Reason.MALFORMED, "A file begins with its name.", field="name")
        # An empty chunk costs too: the number of messages is bounded as well.
        self._left -= max(len(chunk), 64)
        if self._left < 0:
            raise HansaError(Reason.MALFORMED, "A publication has at most 64 MiB.", field="chunk")
        self._parts[self._name].append(chunk)

    def files(self) -> RepositoryFiles:
        """Return what has come.

        Raises:
            HansaError: ``TRUST_INVALID``; a target is not what its name says.
        """
        whole = {name: b"".join(parts) for name, parts in self._parts.items()}
        metadata = {_last(name): data for name, data in whole.items() if name.startswith("metadata/")}
        targets = {_last(name): data for name, data in whole.items() if name.startswith("targets/")}
        if any(hashlib.sha256(data).hexdigest() != sha256 for sha256, data in targets.items()):
            raise HansaError(Reason.TRUST_INVALID, "A target's content is not what its name says.", field="name")
        return RepositoryFiles(metadata, targets)


def _last(name: str) -> str:
    return name.rpartition("/")[2]
