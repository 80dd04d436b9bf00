"""Where a node keeps its state, and its ``agent.toml``.

The state folder belongs to one operating-system user and has the mode 0700;
that mode is what guards the agent's socket, so it is checked on each opening.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import FEDERATION_NAME, NODE_ID, NodeId
from hansa.contract.margins import MIB, Margins

_PRIVATE: Final = 0o700
_OTHERS: Final = 0o077
_FOLDERS: Final = ("keys", "trust", "analyses", "broker", "datasets", "runs", "logs")
_ENDPOINT: Final = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}:[0-9]{1,5}")
_MAX_SLOTS: Final = 64
_MAX_MIB: Final = 1 << 20
# In the folder ``trust``: the root metadata that the invitation named.
PINNED_ROOT: Final = "root.json"


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The names of everything in a node's state folder."""

    path: Path

    @property
    def config_file(self) -> Path:
        """``agent.toml``."""
        return self.path / "agent.toml"

    @property
    def policy_file(self) -> Path:
        """``policy.toml``."""
        return self.path / "policy.toml"

    @property
    def keys(self) -> Path:
        """Folder of the node's key, certificate and trust."""
        return self.path / "keys"

    @property
    def trust(self) -> Path:
        """Folder of the pinned root and of the verified trust repository."""
        return self.path / "trust"

    @property
    def analyses(self) -> Path:
        """Folder of the approved analyses, by digest."""
        return self.path / "analyses"

    @property
    def database(self) -> Path:
        """The agent's store; only the agent opens it."""
        return self.path / "node.db"

    @property
    def socket(self) -> Path:
        """The agent's socket; reach it through ``short_path``."""
        return self.path / "agent.sock"

    @property
    def lock_file(self) -> Path:
        """Locked by the agent as long as it lives."""
        return self.path / "agent.lock"

    @property
    def broker(self) -> Path:
        """Folder of the agent's own broker."""
        return self.path / "broker"

    @property
    def datasets(self) -> Path:
        """Folder of the dataset snapshots."""
        return self.path / "datasets"

    @property
    def runs(self) -> Path:
        """Folder of the runs' working folders."""
        return self.path / "runs"

    @property
    def logs(self) -> Path:
        """Folder of the logs of runs, which never leave the node."""
        return self.path / "logs"

    @property
    def is_initialised(self) -> bool:
        """Whether ``hansa-node init`` has made this folder."""
        return self.policy_file.is_file() and self.keys.is_dir()


def create_state_folder(path: Path) -> StateFolder:
    """Make the state folder and the folders in it, and return it.

    What is there already stays as it is, so that this may be repeated.

    Raises:
        HansaError: ``STATE_FOLDER_INVALID``; the path is not a folder, belongs
            to another user, or is open to others and not empty.
    """
    path = path.absolute()
    try:
        path.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        if not any(path.iterdir()) and path.stat().st_uid == os.geteuid():
            path.chmod(_PRIVATE)  # made by mkdir under a lax umask: ours and empty
        state = open_state_folder(path)
        for name in _FOLDERS:
            (path / name).mkdir(mode=_PRIVATE, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error.strerror or "it cannot be made") from error
    return state


def open_state_folder(path: Path) -> StateFolder:
    """Return the state folder at ``path`` if it is ours and closed to others.

    Raises:
        HansaError: ``STATE_FOLDER_INVALID``, with the remedy.
    """
    path = path.absolute()
    try:
        found = path.stat()
    except OSError as error:
        raise _unusable(path, "there is none; make it with `hansa-node init`") from error
    if not stat.S_ISDIR(found.st_mode):
        raise _unusable(path, "it is not a folder")
    if found.st_uid != os.geteuid():
        raise _unusable(path, "it belongs to another user")
    if found.st_mode & _OTHERS:
        raise _unusable(path, "others can enter it; run `chmod 700` on it")
    return StateFolder(path)


def _unusable(path: Path, why: str) -> HansaError:
    return HansaError(Reason.STATE_FOLDER_INVALID, f"State folder {path}: {why}.", field="state")


class StateLock:
    """The lock on a state folder, held until ``release`` or the process's end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the folder free. May be repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_state_folder(state: StateFolder) -> StateLock:
    """Take the folder for this process alone.

    The kernel drops the lock when the process ends, however it ends. The lock
    belongs to the open file, not to the process, so that closing the file
    elsewhere in the process does not lose it.

    Raises:
        HansaError: ``AGENT_RUNNING``; another process holds it.
    """
    descriptor = os.open(state.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise HansaError(Reason.AGENT_RUNNING, field="state") from error
    # For people to read. On a full disk it stays empty, and the agent begins all the same.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    return StateLock(descriptor)


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Yield a name for ``path`` that fits into a socket's address (107 bytes).

    A state folder may lie deep. The name goes through this process's own
    descriptor of the parent folder, and is good for binding and connecting in
    this process until the context ends.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """What the node's operator sets; the rest of ``agent.toml`` comes from enrolment."""

    # How many runs are worked on at once.
    slots: int = 2
    # The node's own broker by URL; absent: the agent owns a redis-server.
    broker_url: str | None = None
    # MiB of the disk that are held back for what must be written on a full one, and what must be free for new work.
    reserve_mib: int = 64
    free_mib: int = 128

    def __post_init__(self) -> None:
        if not _is_slots(self.slots):
            raise _invalid("slots", f"must be 1 to {_MAX_SLOTS}")
        for name in ("reserve_mib", "free_mib"):
            if not _is_within(getattr(self, name), _MAX_MIB):
                raise _invalid(name, f"must be 1 to {_MAX_MIB}")
        if self.broker_url is not None and not _is_broker(self.broker_url):
            raise _invalid("broker_url", "must be an amqp, amqps, redis, rediss or redis+socket URL")

    @property
    def margins(self) -> Margins:
        """The room that is kept on the store's disk."""
        return Margins(self.reserve_mib * MIB, self.free_mib * MIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig(LocalSettings):
    """``agent.toml`` of an enrolled node."""

    federation: str
    node: NodeId
    # host:port of the coordinator's NodeService.
    node_endpoint: str

    def __post_init__(self) -> None:
        LocalSettings.__post_init__(self)
        for name, pattern in (("federation", FEDERATION_NAME), ("node", NODE_ID), ("node_endpoint", _ENDPOINT)):
            value = getattr(self, name)
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise _invalid(name, "is not valid")


def _is_slots(value: object) -> bool:
    return _is_within(value, _MAX_SLOTS)


def _is_within(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_broker(url: object) -> bool:
    return isinstance(url, str) and url.startswith(("amqp://", "amqps://", "redis://", "rediss://", "redis+socket://"))


def load_config(state: StateFolder) -> AgentConfig:
    """Return ``agent.toml`` of an enrolled node.

    Raises:
        HansaError: ``CONFIG_INVALID``; the file cannot be read, a setting is
            unknown or wrong, or the node is not enrolled yet.
    """
    raw = _read(state.config_file)
    missing = {"federation", "node", "node_endpoint"} - raw.keys()
    if missing:
        raise _invalid(min(missing), "is missing; the node is not enrolled, see `hansa-node enrol`")
    return AgentConfig(**raw)


def load_settings(state: StateFolder) -> LocalSettings:
    """Return the operator's part of ``agent.toml``; the defaults when there is no file.

    Raises:
        HansaError: ``CONFIG_INVALID``.
    """
    raw = _read(state.config_file)
    return LocalSettings(**{key: raw[key] for key in raw if key in {f.name for f in fields(LocalSettings)}})


def config_text(settings: LocalSettings) -> str:
    """Return ``settings`` as the text of ``agent.toml``."""
    lines = ["# The node's own settings; federation, node and node_endpoint are written by `hansa-node enrol`."]
    for key, value in asdict(settings).items():
        if value is not None:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise HansaError(Reason.CONFIG_INVALID, f"{path.name} cannot be read: {_words(error)}.") from error
    for key in raw:
        if key not in {f.name for f in fields(AgentConfig)}:
            raise _invalid(key, "is not a setting")
    return raw


def _words(error: Exception) -> str:
    return (error.strerror or "no access") if isinstance(error, OSError) else str(error)


def _invalid(key: str, why: str) -> HansaError:
    return HansaError(Reason.CONFIG_INVALID, f"agent.toml: {key[:40]} {why}.", field=key[:40])
