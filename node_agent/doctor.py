"""``hansa-node doctor``: what a node needs, checked one by one, each fault with its remedy.

The checks look and change nothing, and each stands alone, so that one fault
does not hide the next.
"""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from hansa.contract.errors import HansaError
from hansa.runtime.clock import Clock, utc_now
from node_agent.config import StateFolder, load_config, open_state_folder
from node_agent.keys.credential import CREDENTIAL, SERVER_CA, is_enrolled, load_credential
from node_agent.local_api.client import AgentClient
from node_agent.policy.file import load_policy

OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"

_PATIENCE_SECONDS: Final = 10
_SQLITE_NEEDED: Final = (3, 51, 3)
_LONGEST_CLOCK_ERROR: Final = timedelta(minutes=5)
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
        ("bubblewrap", lambda _: _program("bubblewrap", ["bwrap", "--version"])),
        ("setpriv", lambda _: _program("setpriv", ["setpriv", "--version"], package="util-linux")),
        ("redis-server", _redis),
        ("sandbox", _sandbox),
        ("sqlite", lambda _: _sqlite()),
        ("clock", lambda found: _clock(found, clock())),
        ("coordinator", _coordinator),
        ("coordinator's log", _coordinator_log),
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
        remedy = "the federation operator invites the node again; then enrol a new state folder"
        return Finding("certificate", FAILED, f"expired {end:%Y-%m-%d %H:%M} UTC", remedy)
    if end - now < _SOON:
        remedy = "start the agent, which renews it"
        return Finding("certificate", WARNING, f"expires {end:%Y-%m-%d %H:%M} UTC", remedy)
    return Finding("certificate", OK, f"valid until {end:%Y-%m-%d %H:%M} UTC")


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
    try:
        from pysqlite3 import dbapi2 as sqlite
    except ImportError:
        import sqlite3 as sqlite
    detail = f"{sqlite.__name__.split('.')[0]} with SQLite {sqlite.sqlite_version}"
    if tuple(int(part) for part in sqlite.sqlite_version.split(".")) < _SQLITE_NEEDED:
        wanted = ".".join(str(part) for part in _SQLITE_NEEDED)
        return Finding("sqlite", WARNING, detail, f"pip install pysqlite3, or Python with SQLite {wanted}")
    return Finding("sqlite", OK, detail)


def _clock(state: StateFolder, now: datetime) -> Finding:
    newest = max(path.stat().st_mtime for path in (state.path, *state.path.iterdir()))
    if newest > (now + _LONGEST_CLOCK_ERROR).timestamp():
        return Finding("clock", FAILED, "the state folder was changed in the future", "set the clock right; use NTP")
    return Finding("clock", OK, f"{now:%Y-%m-%d %H:%M:%S} UTC")


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
    try:
        found = AgentClient(state).status()
    except HansaError:
        return Finding(check, OK, "not looked at: the agent does not run")
    if found.get("log_alarm"):
        remedy = "ask the federation's operators why; then hansa-node audit accept-coordinator-log --reason WHY"
        return Finding(check, FAILED, f"it has forked, no offer is accepted; {found['log_alarm']}", remedy)
    return Finding(check, OK, f"{found.get('coordinator_log', 0)} entries seen and cosigned")


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
