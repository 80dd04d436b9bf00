"""``hansa-coordinator doctor``: what would weaken the coordinator, checked one by one, each fault with its remedy.

The checks look and change nothing, and each stands alone, so that one fault
does not hide the next.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from cryptography import x509
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata

from coordinator.config import CA_FOLDER, FILE, Config, load_config
from coordinator.services.trust import directory_in_force, pinned_root, state_in_force
from coordinator.store.audit import AuditRepository
from coordinator.store.database import Database
from coordinator.store.nodes import NodeRepository
from coordinator.store.paging import Page
from coordinator.store.schema import is_current
from coordinator.store.sessions import SessionRepository
from coordinator.store.trust import TrustRepository
from coordinator.trust_keys import ROOT_FILE, TRUST_FOLDER, load_trust_keys
from hansa.contract.errors import HansaError, Reason
from hansa.contract.raw_keys import key_text
from hansa.runtime.clock import Clock, utc_now
from hansa.runtime.sqlite import sqlite_version
from hansa.runtime.versions import PACKAGES, weaknesses
from hansa.trust.files import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from hansa.trust.online import check_online_keys

OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"

_LONGEST_CLOCK_ERROR: Final = timedelta(minutes=5)
_CERTIFICATES: Final = ("server-ca.pem", "node-ca.pem", "server.pem")
# How long before its end a thing wants attention: longer, where people have to meet to renew it.
_SOON: Final[Mapping[str, timedelta]] = {
    ROOT: timedelta(days=60),
    TARGETS: timedelta(days=30),
    SNAPSHOT: timedelta(days=2),
    TIMESTAMP: timedelta(hours=12),
    "certificate": timedelta(days=14),
}
_DOCUMENT: Final = "see docs/reference/hansa-coordinator.md"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; ``remedy`` is empty when all is well."""

    check: str
    outcome: str
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Examined:
    """A coordinator as it is examined; the database is None where it cannot be used."""

    path: Path
    config: Config
    database: Database | None
    now: datetime

    def ask(self, work: Callable[[Session], Finding]) -> Finding:
        """Return what ``work`` finds in the store.

        Raises:
            HansaError: ``STATE_FOLDER_INVALID``; there is no store to ask.
        """
        if self.database is None:
            raise HansaError(Reason.STATE_FOLDER_INVALID, "The store cannot be asked; see the check `store`.")
        return self.database.run_sync(work)


Check = Callable[[Examined], Finding]


def examine(path: Path, clock: Clock = utc_now) -> Sequence[Finding]:
    """Return the findings on the coordinator whose state folder is ``path``."""
    try:
        config = load_config(path)
        database = _open(config.database_url(path))
    except HansaError as error:
        return [Finding("settings", FAILED, error.public, "hansa-coordinator init, or mend coordinator.toml")]
    store = _run("store", lambda _: _store(database), Examined(path, config, None, clock()))
    # A store of another release is not asked: its tables may be others.
    usable = Examined(path, config, database if store.outcome == OK else None, clock())
    checks: Sequence[tuple[str, Check]] = (
        ("settings", lambda found: Finding("settings", OK, f"{FILE} of {found.config.federation}")),
        ("keys", _keys),
        ("certificates", _certificates),
        ("clock", _clock),
        ("libraries", lambda _: libraries(installed())),
        ("store", lambda _: store),
        ("trust root", _root),
        ("trust keys", _trust_keys),
        *((f"{role} metadata", _metadata(role)) for role in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)),
        ("nodes", _nodes),
    )
    try:
        return [_run(name, check, usable) for name, check in checks]
    finally:
        if database is not None:
            database.close()


def _run(name: str, check: Check, examined: Examined) -> Finding:
    try:
        return check(examined)
    except HansaError as error:
        return Finding(name, FAILED, error.public, _DOCUMENT)
    except (OSError, ValueError, RepositoryError) as error:
        return Finding(name, FAILED, f"{type(error).__name__}: it cannot be read", _DOCUMENT)


def _open(url: str) -> Database | None:
    """Return the store; None where its file is missing, for SQLite would make one."""
    file = make_url(url)
    if file.get_backend_name() == "sqlite" and not Path(file.database or "").exists():
        return None
    return Database.look(url)


def _store(database: Database | None) -> Finding:
    if database is None:
        return Finding("store", FAILED, "its file is missing", "restore it from a backup, or begin anew with init")
    if not is_current(database):
        return Finding("store", FAILED, "its schema is of another release", "hansa-coordinator migrate STATE_DIR")
    return Finding("store", OK, f"{database.engine.dialect.name}, schema of this release")


def _keys(examined: Examined) -> Finding:
    folders = [examined.path, examined.path / CA_FOLDER, examined.path / TRUST_FOLDER]
    private = [examined.path / FILE, *(path for folder in folders[1:] for path in sorted(folder.glob("*.key")))]
    loose = [path for path in (*folders, *private) if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if loose:
        names = ", ".join("the state folder" if path == examined.path else path.name for path in loose)
        places = " ".join(str(path) for path in loose)
        return Finding("keys", FAILED, f"others may read {names}", f"chmod go= {places}")
    return Finding("keys", OK, f"{len(private)} private files, closed to others")


def _certificates(examined: Examined) -> Finding:
    ends = {}
    for name in _CERTIFICATES:
        certificate = x509.load_pem_x509_certificate((examined.path / CA_FOLDER / name).read_bytes())
        ends[name] = certificate.not_valid_after_utc
        if certificate.not_valid_before_utc > examined.now:
            return Finding("certificates", FAILED, f"{name} is not valid yet", "set the clock right; use NTP")
    name = min(ends, key=lambda one: ends[one])
    detail = f"{name} is valid until {ends[name]:%Y-%m-%d}"
    remedy = "restart the server, which renews its own" if name == "server.pem" else "begin the CA's rotation"
    if ends[name] <= examined.now:
        return Finding("certificates", FAILED, f"{name} expired {ends[name]:%Y-%m-%d}", remedy)
    if ends[name] - examined.now < _SOON["certificate"]:
        return Finding("certificates", WARNING, detail, remedy)
    return Finding("certificates", OK, detail)


def _clock(examined: Examined) -> Finding:
    files = [path for path in (examined.path, *examined.path.rglob("*")) if path.exists()]
    newest = max(path.stat().st_mtime for path in files)
    latest = datetime.fromtimestamp(newest, examined.now.tzinfo)
    if examined.database is not None:
        last = examined.database.run_sync(lambda session: AuditRepository(session).page(Page(1)).items)
        latest = max([latest, *(entry.at for entry in last)])
    if latest > examined.now + _LONGEST_CLOCK_ERROR:
        return Finding(
            "clock",
            FAILED,
            f"something here was written {latest - examined.now} from now",
            "set the clock right; use NTP",
        )
    clocks = {} if examined.database is None else examined.database.run_sync(lambda s: SessionRepository(s).clocks())
    return _against(clocks) or Finding("clock", OK, f"{examined.now:%Y-%m-%d %H:%M:%S} UTC")


def _against(clocks: Mapping[str, int]) -> Finding | None:
    """Compare our clock with those of connected nodes: where most differ, ours is wrong."""
    wrong = {node: ahead for node, ahead in clocks.items() if abs(ahead) > _LONGEST_CLOCK_ERROR.total_seconds()}
    if not wrong:
        return None
    detail = "ahead of ours: " + ", ".join(f"{node} by {ahead} s" for node, ahead in sorted(wrong.items()))
    if len(wrong) > 1 and 2 * len(wrong) > len(clocks):
        return Finding("clock", FAILED, detail, "most nodes disagree with this machine: set its clock right; use NTP")
    return Finding("clock", WARNING, detail, "tell the nodes' operators to set their clocks right; use NTP")


def installed() -> dict[str, str]:
    """Return the versions of the libraries that have rules, as installed."""
    found = {"sqlite": sqlite_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def libraries(versions: Mapping[str, str]) -> Finding:
    """Judge the libraries' versions."""
    weak = weaknesses(versions)
    if weak:
        detail = "; ".join(f"{one.library} {one.installed}: {one.why}" for one in weak)
        wanted = ", ".join(f"{one.library} {one.mended} or later" for one in weak)
        return Finding("libraries", FAILED, detail, f"install {wanted} (SQLite: pip install pysqlite3-binary)")
    return Finding("libraries", OK, ", ".join(f"{name} {text}" for name, text in versions.items()))


def _root(examined: Examined) -> Finding:
    handed_out = (examined.path / TRUST_FOLDER / ROOT_FILE).read_bytes()

    def work(session: Session) -> Finding:
        if handed_out != pinned_root(session):
            remedy = "somebody has changed one of the two: compare with the root of the ceremony's record"
            return Finding("trust root", FAILED, f"{ROOT_FILE} is not the root that is pinned in the store", remedy)
        return Finding("trust root", OK, f"version {state_in_force(session).pinned_root} is pinned")

    return examined.ask(work)


def _trust_keys(examined: Examined) -> Finding:
    keys = load_trust_keys(examined.path)

    def work(session: Session) -> Finding:
        state, mirror = state_in_force(session), TrustRepository(session)
        check_online_keys(mirror.metadata(ROOT, state.root_version) or b"", keys.online)
        if directory_in_force(session).coordinator_log_key != key_text(keys.log.public_key()):
            remedy = "put the right log.key back, or have the directory name this one"
            return Finding("trust keys", FAILED, "the directory names another key for the audit log", remedy)
        return Finding("trust keys", OK, "snapshot, timestamp and log: those that root and directory name")

    return examined.ask(work)


def _metadata(role: str) -> Check:
    remedy = {
        ROOT: "its signers sign a new root: hansa trust sign, hansa trust publish",
        TARGETS: "its signers sign the directory again: hansa trust sign, hansa trust publish",
        SNAPSHOT: "start the server, which renews it",
        TIMESTAMP: "start the server, which renews it hourly",
    }[role]
    name = f"{role} metadata"

    def check(examined: Examined) -> Finding:
        def work(session: Session) -> Finding:
            number = state_in_force(session).version_of(role)
            data = TrustRepository(session).metadata(role, number)
            if data is None:
                return Finding(name, FAILED, f"version {number} is not in the store", "restore the store")
            ends: datetime = Metadata.from_bytes(data).signed.expires
            detail = f"version {number} until {ends:%Y-%m-%d %H:%M} UTC"
            if ends <= examined.now:
                return Finding(name, FAILED, f"{detail}: expired", remedy)
            if ends - examined.now < _SOON[role]:
                return Finding(name, WARNING, detail, remedy)
            return Finding(name, OK, detail)

        return examined.ask(work)

    return check


def _nodes(examined: Examined) -> Finding:
    def work(session: Session) -> Finding:
        named = {node.node for node in directory_in_force(session).nodes}
        nodes = NodeRepository(session).page(Page(1000)).items
        strange = [node.node for node in nodes if node.state == "ACTIVE" and node.node not in named]
        apart = [f"{node.node} ({node.reason})" for node in nodes if node.state == "QUARANTINED"]
        if strange:
            remedy = "publish a directory with the nodes' keys, or revoke them"
            return Finding("nodes", WARNING, f"not in the directory: {', '.join(strange)}", remedy)
        if apart:
            remedy = "look at the node's store and audit log, then resume or revoke it"
            return Finding("nodes", WARNING, f"quarantined: {', '.join(apart)}", remedy)
        return Finding("nodes", OK, f"{len(nodes)} known, {len(named)} in the directory")

    return examined.ask(work)
