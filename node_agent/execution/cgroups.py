"""Control groups: what bounds an execution, and what finds every process of it.

Version 1 (one hierarchy per controller) and version 2 (one for all). Groups are
made below the worker's own group, so that whatever bounds the worker bounds
its runs too. All processes of one execution, rules included, are in one group;
killing means killing the group until it is empty.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CONTROLLERS: Final = ("memory", "pids", "cpu")
_ROOT: Final = Path("/sys/fs/cgroup")
_FAMILY: Final = "hansa"
# Version 2 wants no processes in inner groups: the worker moves into this leaf.
_LEAF: Final = "hansa-worker"
_PERIOD_US: Final = 100_000
_KILL_STEP_SECONDS: Final = 0.005
_REMOVE_TRIES: Final = 10


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """What the processes of a group may use together."""

    memory_bytes: int
    pids: int
    cpus: float


@dataclass(frozen=True, slots=True)
class Group:
    """One execution's group; its folders by controller (version 2: all the same)."""

    version: int
    folders: Mapping[str, Path]

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.folders["pids"].name

    def create(self, limits: GroupLimits) -> None:
        """Make the group with its limits; an empty one left over is taken.

        Raises:
            OSError: the groups cannot be written.
        """
        for folder in set(self.folders.values()):
            folder.mkdir(parents=True, exist_ok=True)
        if self.version == 1:
            self._limit_v1(limits)
        else:
            self._limit_v2(limits)

    def _limit_v1(self, limits: GroupLimits) -> None:
        memory, cpu = self.folders["memory"], self.folders["cpu"]
        # The sum with swap may never be below the limit: it is written second, and lifted first.
        with contextlib.suppress(OSError):
            (memory / "memory.memsw.limit_in_bytes").write_text("-1")
        (memory / "memory.limit_in_bytes").write_text(str(limits.memory_bytes))
        with contextlib.suppress(OSError):
            (memory / "memory.memsw.limit_in_bytes").write_text(str(limits.memory_bytes))
        (self.folders["pids"] / "pids.max").write_text(str(limits.pids))
        (cpu / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (cpu / "cpu.cfs_quota_us").write_text(str(max(int(limits.cpus * _PERIOD_US), 1000)))

    def _limit_v2(self, limits: GroupLimits) -> None:
        folder = self.folders["memory"]
        (folder / "memory.max").write_text(str(limits.memory_bytes))
        with contextlib.suppress(OSError):
            (folder / "memory.swap.max").write_text("0")
        (folder / "memory.oom.group").write_text("1")
        (folder / "pids.max").write_text(str(limits.pids))
        (folder / "cpu.max").write_text(f"{max(int(limits.cpus * _PERIOD_US), 1000)} {_PERIOD_US}")

    def attach(self, pid: int) -> None:
        """Move the process ``pid``, and what it will fork, into the group.

        Raises:
            OSError: the group is gone, or the process has ended.
        """
        for folder in set(self.folders.values()):
            (folder / "cgroup.procs").write_text(str(pid))

    def processes(self) -> Sequence[int]:
        """Return who is in the group, zombies excepted; nobody if it is gone.

        Version 1: in any of its hierarchies, since a process is put into one after the other.
        """
        found: set[int] = set()
        for folder in set(self.folders.values()):
            with contextlib.suppress(OSError):
                found |= {int(line) for line in (folder / "cgroup.procs").read_text().split()}
        return sorted(found)

    def kill(self, patience_seconds: float) -> bool:
        """Kill every process of the group; return whether it is empty now.

        Forking is forbidden first, so that a fork bomb cannot outrun this.
        """
        with contextlib.suppress(OSError):
            (self.folders["pids"] / "pids.max").write_text("0")
        give_up = time.monotonic() + patience_seconds
        while alive := self.processes():
            for pid in alive:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > give_up:
                return False
            time.sleep(_KILL_STEP_SECONDS)
        return True

    def memory_kills(self) -> int:
        """Return how many processes the kernel has killed for the memory limit."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        try:
            lines = (self.folders["memory"] / name).read_text().splitlines()
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def process_refusals(self) -> int:
        """Return how often a process of the group could not fork for the limit; to be asked before ``kill``."""
        try:
            lines = (self.folders["pids"] / "pids.events").read_text().splitlines()
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in lines if line.startswith("max "))

    def remove(self) -> bool:
        """Remove the group if it is empty; return whether it is gone. A repeat does nothing.

        Into a group that is gone nothing can be put any more.
        """
        # By the last one the group is found again, should another not go.
        for folder in sorted(set(self.folders.values()), key=lambda folder: folder == self.folders["pids"]):
            for _ in range(_REMOVE_TRIES):
                with contextlib.suppress(FileNotFoundError):
                    try:
                        folder.rmdir()
                    except OSError:
                        # The kernel has not quite let go of its last process.
                        time.sleep(_KILL_STEP_SECONDS)
                        continue
                break
        return not any(folder.exists() for folder in self.folders.values())


@dataclass(frozen=True, slots=True)
class Groups:
    """Where this worker may make groups."""

    version: int
    # The folder of the worker's own group, by controller.
    folders: Mapping[str, Path]

    def group(self, node: str, name: str) -> Group:
        """Return the group ``hansa/node/name``; nothing is made yet."""
        return Group(self.version, {c: folder / _FAMILY / node / name for c, folder in self.folders.items()})

    def left_over(self, node: str, prefix: str) -> Sequence[Group]:
        """Return the groups of ``node`` that exist and whose name starts with ``prefix``."""
        try:
            inner = (self.folders["pids"] / _FAMILY / node).iterdir()
            names = sorted(path.name for path in inner if path.is_dir())
        except OSError:
            return []
        return [self.group(node, name) for name in names if name.startswith(prefix)]

    def sweep(self, node: str, older_than: float) -> None:
        """Remove empty groups that a killed worker left, then the node's folder if nothing is in it.

        Args:
            node: whose groups.
            older_than: a time (of ``time.time``); a younger group may be another
                worker's that has not put its first process in yet.
        """
        for group in self.left_over(node, ""):
            with contextlib.suppress(OSError):
                if group.folders["pids"].stat().st_mtime < older_than:
                    group.remove()
        for folder in set(self.folders.values()):
            with contextlib.suppress(OSError):
                (folder / _FAMILY / node).rmdir()

    def open_for(self, node: str) -> None:
        """Make the folder that holds ``node``'s groups; version 2: hand the controllers down.

        Raises:
            OSError: not writable here.
        """
        for folder in set(self.folders.values()):
            (folder / _FAMILY / node).mkdir(parents=True, exist_ok=True)
        if self.version == 1:
            return
        folder = self.folders["memory"]
        if folder != _ROOT:
            (folder / _LEAF).mkdir(exist_ok=True)
            for pid in (folder / "cgroup.procs").read_text().split():
                (folder / _LEAF / "cgroup.procs").write_text(pid)
        for inner in (folder, folder / _FAMILY, folder / _FAMILY / node):
            (inner / "cgroup.subtree_control").write_text(" ".join(f"+{c}" for c in _CONTROLLERS))


def find_groups(own: str, root: Path = _ROOT) -> Groups | None:
    """Return where groups may be made; None if a controller is nowhere.

    Args:
        own: the text of ``/proc/self/cgroup``.
        root: where the hierarchies are mounted.
    """
    paths: dict[str, str] = {}
    for line in own.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            paths[name] = path.strip("/")
    if all(controller in paths and (root / controller).is_dir() for controller in _CONTROLLERS):
        return Groups(1, {c: _existing(root / c, paths[c]) for c in _CONTROLLERS})
    try:
        offered = set((root / "cgroup.controllers").read_text().split())
    except OSError:
        return None
    if not set(_CONTROLLERS) <= offered:
        return None
    mine = _existing(root, paths.get("", ""))
    mine = mine.parent if mine.name == _LEAF else mine
    return Groups(2, dict.fromkeys(_CONTROLLERS, mine))


def _existing(mount: Path, path: str) -> Path:
    """Return the group's folder; in a container the path may lie outside of what is mounted."""
    folder = mount / path
    return folder if folder.is_dir() else mount
