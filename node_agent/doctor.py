"""``hansa-node doctor``: what a node needs, checked one by one, each fault with its remedy.

The checks look and change nothing, and each stands alone, so that one fault
does not hide the next.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from hansa.contract.digests import digest
from hansa.contract.directory import Role
from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import CLOCK_TOLERANCE, CLOCK_WORTH_A_WORD
from hansa.contract.margins import MIB
from hansa.contract.raw_keys import key_digest
from hansa.runtime.clock import Clock, utc_now
from hansa.runtime.space import RESERVE_FILE
from hansa.runtime.sqlite import sqlite_module, sqlite_version
from hansa.runtime.versions import PACKAGES, weaknesses
from hansa.trust.files import METADATA_FOLDER
from hansa.trust.view import TrustView
from node_agent.config import PINNED_ROOT, StateFolder, load_config, load_settings, open_state_folder
from node_agent.keys.credential import CREDENTIAL, SERVER_CA, is_enrolled, load_credential
from node_agent.keys.identity import AGREEMENT, SIGNING, load_identity
from node_agent.local_api.client import AgentClient
from node_agent.policy.admission import is_member
from node_agent.policy.approvals import Site
from node_agent.policy.file import load_policy
from node_agent.policy.policy import data_holder
from node_agent.trust.folder import offline_client

OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"

_PATIENCE_SECONDS: Final = 10
_SOON: Final = timedelta(days=1)
# HTTP/2: the client's preface and an empty SETTINGS frame, which the server answers with its own.
_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; ``remedy`` is empty when all is well."""

    check: str
    outcome: str
    detail: str
    remedy: str = ""


Check = Callable[[StateFolder], Finding]


def examine(path: Path, clock: Clock = utc_now) -> Sequence[Finding]:
    """Return the findings on the node whose state folder is ``path``."""
    try:
        state = open_state_folder(path)
    except HansaError as error:
        return [Finding("state folder", FAILED, error.public, "hansa-node init, chmod 700, or its owner's account")]
    checks: Sequence[tuple[str, Check]] = (
        ("state folder", lambda found: Finding("state folder", OK, str(found.path))),
        ("keys", _keys),
        ("agent.toml", _config),
        ("policy", _policy),
        ("certificate", lambda found: _certificate(found, clock())),
        ("own keys", _own_keys),
        ("pinned root", _pinned_root),
        ("trust", lambda found: _trust(found, clock())),
        ("directory", lambda found: _directory(found, clock())),
        ("data holders", lambda found: _data_holders(found, clock())),
        ("libraries", lambda _: libraries({name: installed(name) for name in PACKAGES})),
        ("bubblewrap", lambda _: _program("bubblewrap", ["bwrap", "--version"])),
        ("setpriv", lambda _: _program("setpriv", ["setpriv", "--version"], package="util-linux")),
        ("redis-server", _redis),
        ("sandbox", _sandbox),
        ("sqlite", lambda _: _sqlite()),
        ("disk", _disk),
        ("clock", lambda found: _clock(found, clock())),
        ("coordinator", _coordinator),
        ("coordinator's log", _coordinator_log),
        ("store", _store),
    )
    return [_run(name, check, state) for name, check in checks]


def _run(name: str, check: Check, state: StateFolder) -> Finding:
    try:
        return check(state)
    except HansaError as error:
        return Finding(name, FAILED, error.public, "see docs/reference/hansa-node.md")
    except OSError as error:
        return Finding(name, FAILED, error.strerror or type(error).__name__, "see docs/reference/hansa-node.md")


def _keys(state: StateFolder) -> Finding:
    secret = [path for path in state.keys.iterdir() if path.name != SERVER_CA]
    loose = [path.name for path in secret if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if loose:
        return Finding("keys", FAILED, f"others can read {', '.join(loose)}", f"chmod 600 {state.keys}/*")
    return Finding("keys", OK, f"{len(secret)} files, closed to others")


def _config(state: StateFolder) -> Finding:
    if not is_enrolled(state):
        return _not_enrolled("agent.toml")
    config = load_config(state)
    return Finding("agent.toml", OK, f"{config.node} of {config.federation}, {config.slots} slots")


def _not_enrolled(check: str) -> Finding:
    return Finding(check, FAILED, "the node is not enrolled", "hansa-node enrol TOKEN")


def _policy(state: StateFolder) -> Finding:
    admission = load_policy(state.policy_file).admission
    if not admission.submitters or not admission.analyses:
        return Finding("policy", WARNING, "it admits nothing", "hansa-node policy allow --help")
    return Finding("policy", OK, f"{len(admission.submitters)} submitters, {len(admission.analyses)} analyses")


def _certificate(state: StateFolder, now: datetime) -> Finding:
    if not is_enrolled(state):
        return _not_enrolled("certificate")
    certificate = load_credential(state).certificate
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < start:
        return Finding("certificate", FAILED, f"valid only from {start:%Y-%m-%d %H:%M} UTC", "set the clock right")
    if now >= end:
        remedy = "two federation operators: hansa admin node invite NODE --again; then hansa-node enrol --again TOKEN"
        return Finding("certificate", FAILED, f"expired {end:%Y-%m-%d %H:%M} UTC", remedy)
    if end - now < _SOON:
        remedy = "start the agent, which renews it"
        return Finding("certificate", WARNING, f"expires {end:%Y-%m-%d %H:%M} UTC", remedy)
    return Finding("certificate", OK, f"valid until {end:%Y-%m-%d %H:%M} UTC")


def _own_keys(state: StateFolder) -> Finding:
    if not is_enrolled(state):
        return _not_enrolled("own keys")
    load_identity(state)
    return Finding("own keys", OK, f"{SIGNING} and {AGREEMENT}")


def _pinned_root(state: StateFolder) -> Finding:
    path = state.trust / PINNED_ROOT
    if not path.is_file():
        return Finding("pinned root", FAILED, "the node has pinned no root of trust", "enrol a new state folder")
    if stat.S_IMODE(path.stat().st_mode) & 0o022 or stat.S_IMODE(state.trust.stat().st_mode) & 0o022:
        remedy = f"chmod 700 {state.trust}; chmod 600 {path}; compare its digest with the operators"
        return Finding("pinned root", FAILED, "others can replace it", remedy)
    return Finding("pinned root", OK, digest(path.read_bytes()))


def _trust(state: StateFolder, now: datetime) -> Finding:
    view, expired = _view(state, now)
    if view is None:
        return Finding("trust", FAILED, "nothing was verified yet", "start the agent, and see `hansa-node status`")
    if expired:
        remedy = "connect the node; if it is, the federation operators have to renew: new jobs are declined"
        return Finding("trust", FAILED, f"directory {view.directory.version}: its metadata have expired", remedy)
    detail = f"directory {view.directory.version}, valid until {view.expires:%Y-%m-%d %H:%M} UTC"
    return Finding("trust", OK, detail)


def _view(state: StateFolder, now: datetime) -> tuple[TrustView | None, bool]:
    """Return what the folder holds, and whether it has expired."""
    client = offline_client(state.trust)
    try:
        return client.load(now), False
    except HansaError as error:
        if error.reason is Reason.TRUST_UNKNOWN:
            return None, False
        if error.reason is not Reason.TRUST_EXPIRED:
            raise
    # The timestamp expires first: all else is judged as of the day it was fetched.
    fetched = (state.trust / METADATA_FOLDER / "timestamp.json").stat().st_mtime
    return client.load(datetime.fromtimestamp(fetched, UTC)), True


def _directory(state: StateFolder, now: datetime) -> Finding:
    if not is_enrolled(state):
        return _not_enrolled("directory")
    view, _ = _view(state, now)
    if view is None:
        return Finding("directory", FAILED, "none is known here", "start the agent, and see `hansa-node status`")
    config = load_config(state)
    if not is_member(view, Site(config.federation, config.node), load_identity(state).public):
        remedy = "give the federation operators the card that `hansa-node card` prints"
        detail = f"directory {view.directory.version} does not have {config.node} with these keys"
        return Finding("directory", FAILED, detail, remedy)
    return Finding("directory", OK, f"{config.node} stands in it with these keys")


def _data_holders(state: StateFolder, now: datetime) -> Finding:
    pinned = load_policy(state.policy_file).approval.data_holders
    if not pinned:
        remedy = "hansa-node policy allow data-holder NAME --key FILE.pub"
        return Finding("data holders", WARNING, "the policy names none: no job is ever approved", remedy)
    view, _ = _view(state, now)
    people = () if view is None else view.directory.people
    known = {data_holder(one.name, key_digest(one.signing_key)) for one in people if one.has(Role.DATA_HOLDER)}
    strangers = ", ".join(one.partition("=")[0] for one in pinned if one not in known)
    if view is not None and strangers:
        remedy = "compare keys with them: both the policy and the directory have to name them"
        return Finding("data holders", WARNING, f"not in the directory with this role and key: {strangers}", remedy)
    return Finding("data holders", OK, f"{len(pinned)} pinned")


def installed(package: str) -> str:
    """Return the version of a package as installed; empty if it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def libraries(versions: Mapping[str, str]) -> Finding:
    """Judge the libraries' versions; those that are not there are not judged."""
    held = {name: text for name, text in versions.items() if text}
    weak = weaknesses(held)
    if weak:
        detail = "; ".join(f"{one.library} {one.installed}: {one.why}" for one in weak)
        wanted = ", ".join(f"{one.library} {one.mended} or later" for one in weak)
        return Finding("libraries", FAILED, detail, f"install {wanted}, then restart the agent and its workers")
    return Finding("libraries", OK, ", ".join(f"{name} {text}" for name, text in held.items()))


def _program(check: str, command: Sequence[str], *, package: str = "") -> Finding:
    place = shutil.which(command[0])
    if place is None:
        return Finding(check, FAILED, f"{command[0]} is not installed", f"apt-get install {package or check}")
    done = subprocess.run([place, *command[1:]], capture_output=True, text=True, check=False, timeout=_PATIENCE_SECONDS)
    if done.returncode != 0:
        return Finding(check, FAILED, f"{place} does not run", f"apt-get install --reinstall {package or check}")
    version = re.search(r"\d+(\.\d+)+", done.stdout)
    return Finding(check, OK, f"{place} {version[0] if version else ''}".strip())


def _redis(state: StateFolder) -> Finding:
    if is_enrolled(state) and load_config(state).broker_url is not None:
        return Finding("redis-server", OK, "not needed: broker_url names another broker")
    return _program("redis-server", ["redis-server", "--version"])


def _sandbox(_state: StateFolder) -> Finding:
    from node_agent.execution.bubblewrap import BubblewrapSandbox, this_machine

    sandbox = BubblewrapSandbox(this_machine("doctor"), warm=False)
    try:
        report = sandbox.probe()
    finally:
        sandbox.close()
    detail = "; ".join((f"{report.driver}, limits by {report.limits}", *report.remarks))
    if not report.usable:
        return Finding("sandbox", FAILED, detail, "install bubblewrap and util-linux; see docs/reference/hansa-node.md")
    if report.limits == "rlimits":
        return Finding("sandbox", WARNING, detail, "run the agent where it may write control groups")
    return Finding("sandbox", OK, detail)


def _sqlite() -> Finding:
    detail = f"{sqlite_module().__name__.split('.')[0]} with SQLite {sqlite_version()}"
    for weak in weaknesses({"sqlite": sqlite_version()}):
        # One connection writes, by a lock: the fault cannot occur.
        return Finding("sqlite", WARNING, detail, f"pip install pysqlite3, or Python with SQLite {weak.mended}")
    return Finding("sqlite", OK, detail)


def _disk(state: StateFolder) -> Finding:
    margins = load_settings(state).margins
    found = os.statvfs(state.path)
    free, reserved = found.f_bavail * found.f_frsize, (state.path / RESERVE_FILE).exists()
    detail = f"{free // MIB} MiB free, the reserve is {'there' if reserved else 'not there'}"
    if free < margins.floor:
        remedy = f"make room: {margins.floor // MIB} MiB have to be free; see docs/runbooks/disk-full.md"
        return Finding("disk", FAILED, f"{detail}; no new work is taken", remedy)
    return Finding("disk", OK, detail)


def _clock(state: StateFolder, now: datetime) -> Finding:
    newest = max(path.stat().st_mtime for path in (state.path, *state.path.iterdir()))
    if newest > (now + CLOCK_TOLERANCE).timestamp():
        return Finding("clock", FAILED, "the state folder was changed in the future", "set the clock right; use NTP")
    return against_coordinator(_agent_status(state).get("clock_ahead_seconds", 0)) or Finding(
        "clock", OK, f"{now:%Y-%m-%d %H:%M:%S} UTC"
    )


def _agent_status(state: StateFolder) -> Mapping[str, Any]:
    """Return what the agent says of itself; nothing where it does not run."""
    try:
        return AgentClient(state).status()
    except HansaError:
        return {}


def against_coordinator(ahead: int) -> Finding | None:
    """Judge by how many seconds this node's clock was ahead of the coordinator's; None if that is well."""
    detail = f"{abs(ahead)} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    remedy = "set the wrong one of the two right; use NTP: see docs/runbooks/clock-wrong.md"
    if abs(ahead) > CLOCK_TOLERANCE.total_seconds():
        return Finding("clock", FAILED, f"{detail}; new jobs are declined as CLOCK_WRONG", remedy)
    if abs(ahead) > CLOCK_WORTH_A_WORD.total_seconds():
        return Finding("clock", WARNING, detail, remedy)
    return None


def _coordinator(state: StateFolder) -> Finding:
    if not is_enrolled(state):
        return _not_enrolled("coordinator")
    endpoint = load_config(state).node_endpoint
    try:
        _greet(state, endpoint)
    except ssl.SSLCertVerificationError as error:
        remedy = "it is another server, or its certificate expired; ask the federation operator"
        return Finding("coordinator", FAILED, f"{endpoint}: {error.verify_message}", remedy)
    except _HungUpError:
        remedy = "ask the federation operator whether the node was revoked"
        return Finding("coordinator", FAILED, f"{endpoint} does not accept our certificate", remedy)
    except OSError as error:
        remedy = "check the address, and that the firewall lets this host connect to it"
        return Finding("coordinator", FAILED, f"{endpoint}: {error.strerror or error}", remedy)
    return Finding("coordinator", OK, f"{endpoint} answers over mutual TLS")


def _coordinator_log(state: StateFolder) -> Finding:
    check = "coordinator's log"
    found = _agent_status(state)
    if not found:
        return Finding(check, OK, "not looked at: the agent does not run")
    if found.get("log_alarm"):
        remedy = "ask the federation's operators why; then hansa-node audit accept-coordinator-log --reason WHY"
        return Finding(check, FAILED, f"it has forked, no offer is accepted; {found['log_alarm']}", remedy)
    return Finding(check, OK, f"{found.get('coordinator_log', 0)} entries seen and cosigned")


def _store(state: StateFolder) -> Finding:
    found = _agent_status(state)
    if not found:
        return Finding("store", OK, "not looked at: the agent does not run")
    store = found["store"]
    if not store["reconciled"]:
        remedy = "see docs/runbooks/node-restored-from-backup.md: two federation operators reconcile the node"
        return Finding("store", FAILED, "it was restored and is not reconciled; nothing starts, nothing leaves", remedy)
    return Finding("store", OK, f"generation {store['generation']}, reconciled")


def _greet(state: StateFolder, endpoint: str) -> None:
    """Shake hands with the coordinator and wait for a first word.

    With TLS 1.3 a server that refuses our certificate says so only after the
    handshake has ended on our side.
    """
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(state.keys / SERVER_CA)
    context.load_cert_chain(state.keys / CREDENTIAL)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=_PATIENCE_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as tls,
    ):
        try:
            tls.sendall(_HELLO)
            answer = tls.recv(1)
        except (ssl.SSLError, ConnectionError) as error:
            raise _HungUpError from error
        if not answer:
            raise _HungUpError


class _HungUpError(Exception):
    """The server proved who it is, and then ended the connection."""
