"""What a box looks like from inside, as arguments of bubblewrap.

Pure functions of facts about the machine. The fork server gets the same view
of the system as the runs that it serves, so that what it has imported lies
where its children will find it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Final

from node_agent.execution.inside import PROGRAM_DIR

# Not "nobody": what NFS and user namespaces cannot name belongs to nobody, and
# file systems may keep reserved blocks for that uid.
BOX_UID: Final = 65_533
BOX_GID: Final = 65_533

BUNDLE, DATA, WORK = "/bundle", "/data", "/work"
_ENVIRONMENT_DIR: Final = "/opt/hansa/venv"
_SYSTEM: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# ld.so.cache: where libraries lie. alternatives: awk and its like are links through it.
_ETC: Final = ("/etc/ld.so.cache", "/etc/alternatives")
_TAKEN: Final = (BUNDLE, DATA, WORK, "/opt/hansa", "/proc", "/dev", "/tmp")  # noqa: S108 # names, not files
_EXECUTION: Final = Path(__file__).parent
_PLUGIN: Final = "snakemake_executor_plugin_hansa"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python that serves in the box: the one that runs this process."""

    # sys.prefix: a virtual environment, or the same as ``base``.
    prefix: Path
    base: Path
    plugin: Path

    @property
    def is_virtual(self) -> bool:
        """Whether there is a virtual environment to bind."""
        return self.prefix != self.base

    @property
    def bin(self) -> str:
        """The folder of ``python`` as seen in the box."""
        return f"{_ENVIRONMENT_DIR if self.is_virtual else self.base}/bin"

    @property
    def python(self) -> str:
        """The interpreter as seen in the box."""
        return f"{self.bin}/{'python' if self.is_virtual else Path(sys.executable).name}"


def this_interpreter() -> Interpreter:
    """Return the interpreter of this process, with the executor plugin it would import."""
    found = find_spec(_PLUGIN)
    if found is None or found.origin is None:
        plugin = _EXECUTION.parent / "plugins" / _PLUGIN
    else:
        plugin = Path(found.origin).parent
    return Interpreter(Path(sys.prefix), Path(sys.base_prefix), plugin)


def obstacle(interpreter: Interpreter) -> str | None:
    """Say why a box cannot be laid out for ``interpreter``; None if it can."""
    base = PurePosixPath(interpreter.base)
    for taken in _TAKEN:
        if base.is_relative_to(taken):
            return f"the interpreter lies in {base}, but {taken} is the box's own; install Python elsewhere"
    return None


def system_mounts(interpreter: Interpreter, memory_bytes: int) -> list[str]:
    """Return what every box and the fork server see: system, interpreter, program; all read-only.

    Args:
        interpreter: the Python to bind.
        memory_bytes: the size of what may be written into memory: /tmp and /dev/shm, each.
    """
    memory: list[str] = []
    for name in ("/tmp", "/dev/shm"):  # noqa: S108 # the box's own
        memory += ["--perms", "1777", "--size", str(memory_bytes), "--tmpfs", name]
    return [*_operating_system(), *_interpreter(interpreter), "--proc", "/proc", "--dev", "/dev", *memory]


def _operating_system() -> list[str]:
    mounts = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        if os.path.islink(name):  # noqa: PTH114 # the text of the link is wanted
            mounts += ["--symlink", os.readlink(name), name]  # noqa: PTH115
        elif os.path.isdir(name):  # noqa: PTH112
            mounts += ["--ro-bind", name, name]
    mounts += _folders("/etc")
    for name in _ETC:
        mounts += ["--ro-bind-try", name, name]
    return mounts


def _interpreter(interpreter: Interpreter) -> list[str]:
    mounts: list[str] = []
    base = str(interpreter.base)
    if not PurePosixPath(base).is_relative_to("/usr"):
        # It may lie below a folder that only root may enter: its parents are made anew.
        mounts += [*_folders(*_parents(base)), "--ro-bind", base, base]
    mounts += _folders("/opt", "/opt/hansa", PROGRAM_DIR)
    if interpreter.is_virtual:
        mounts += ["--ro-bind", str(interpreter.prefix), _ENVIRONMENT_DIR]
    for name in ("inside.py", "fork_server.py"):
        mounts += ["--ro-bind", str(_EXECUTION / name), f"{PROGRAM_DIR}/{name}"]
    return [*mounts, "--ro-bind", str(interpreter.plugin), f"{PROGRAM_DIR}/{_PLUGIN}"]


def box_mounts(bundle: Path, data: Path, work: Path) -> list[str]:
    """Return what only one execution sees."""
    return [
        *("--ro-bind", str(bundle), BUNDLE),
        *("--ro-bind", str(data), DATA),
        *("--bind", str(work), WORK),
        *("--chdir", WORK),
        # What lies beside the mounts is nobody's to write.
        *("--remount-ro", "/"),
    ]


def environment_arguments(environment: Mapping[str, str]) -> list[str]:
    """Return the arguments that replace the whole environment."""
    return ["--clearenv", *(word for name, value in environment.items() for word in ("--setenv", name, value))]


def identity(*, privileged: bool) -> tuple[list[str], list[str]]:
    """Return bubblewrap's arguments and the first program's words that make the box's user.

    As root: no user namespace, since bubblewrap's ``--uid`` would leave root's
    power over bound files (measured); ``setpriv`` drops to a real uid instead.
    Else: a user namespace, whose owner's powers are small.
    """
    if not privileged:
        return ["--unshare-user", "--uid", str(BOX_UID), "--gid", str(BOX_GID)], []
    drop = ["/usr/bin/setpriv", "--reuid", str(BOX_UID), "--regid", str(BOX_GID), "--clear-groups"]
    drop += ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--"]
    kept = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
    return ["--cap-drop", "ALL", *(word for cap in kept for word in ("--cap-add", cap))], drop


def _parents(path: str) -> Sequence[str]:
    return [str(parent) for parent in reversed(PurePosixPath(path).parents)][1:]


def _folders(*names: str) -> list[str]:
    return [word for name in names for word in ("--perms", "0755", "--dir", name)]
