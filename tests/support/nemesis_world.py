"""A machine within the machine: a network, processes and mounts that end with us, however we end.

The nemesis runs in namespaces of its own (network, mounts, processes). Each
node has a network namespace besides, with one wire to the bridge at which the
coordinator listens. Nothing outside is touched, and the kernel takes
everything down with the first process of the namespace.
"""

from __future__ import annotations

import enum
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

HUB: Final = "10.77.0.1"
BRIDGE: Final = "hub"
_INSIDE: Final = "HANSA_NEMESIS_INSIDE"
_NETNS: Final = Path("/run/netns")
# Nobody's address: what is sent to it passes every wire and is taken by no one.
_NOBODY: Final = "02:00:00:00:00:0f"


def may_have_namespaces() -> bool:
    """Say whether this process can make the namespaces: it is root, and the programs are there."""
    if os.geteuid() != 0:
        return False
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "ip", "link", "show"],
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    return tried.returncode == 0


def is_inside() -> bool:
    """Say whether this process lives in namespaces of the nemesis."""
    return os.environ.get(_INSIDE) == "1"


def inside_command(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs ``python -m module`` in namespaces of its own."""
    wrap = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*wrap, "env", f"{_INSIDE}=1", sys.executable, "-m", module, *arguments]


def become_child() -> None:
    """Return in a child; the caller, the namespace's first process, buries the dead until that ends.

    Orphans of killed daemons become children of the first process, whoever
    that is: one that does not wait for them would keep them as zombies.
    """
    child = os.fork()
    if child == 0:
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: os.kill(child, got))
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def mount_memory(folder: Path, size_mib: int) -> None:
    """Mount a file system of its own over ``folder``, which keeps its mode; its files move along."""
    mode = folder.stat().st_mode & 0o7777
    kept = folder.with_name(f".{folder.name}.kept")
    subprocess.run(["cp", "-a", str(folder), str(kept)], check=True)
    options = f"size={size_mib}m,mode={mode:o}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "hansa-nemesis", str(folder)], check=True)
    subprocess.run(["cp", "-a", f"{kept}/.", str(folder)], check=True)
    subprocess.run(["rm", "-rf", str(kept)], check=True)


class Cut(enum.StrEnum):
    """Which way a wire is cut, as seen from the node."""

    BOTH = "both"
    IN = "in"
    OUT = "out"


class Network:
    """The bridge, and one wire to each node."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self._address = {node: f"10.77.0.{10 + place}" for place, node in enumerate(nodes)}

    def build(self) -> None:
        """Make all of it in the present namespaces."""
        _NETNS.mkdir(exist_ok=True)
        # Names of our own: what is mounted here is seen here only.
        _run("mount", "-t", "tmpfs", "hansa-nemesis", str(_NETNS))
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "address", "add", f"{HUB}/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        for node, address in self._address.items():
            _run("ip", "netns", "add", node)
            _run("ip", "link", "add", f"to-{node}", "type", "veth", "peer", "name", "eth0", "netns", node)
            _run("ip", "link", "set", f"to-{node}", "master", BRIDGE, "up")
            _run(*at_node(node), "ip", "address", "add", f"{address}/24", "dev", "eth0")
            _run(*at_node(node), "ip", "link", "set", "eth0", "up")
            _run(*at_node(node), "ip", "link", "set", "lo", "up")

    def cut(self, node: str, way: Cut) -> None:
        """Lose what is sent that way without a word to the sender."""
        if way is not Cut.OUT:
            _run("ip", "neigh", "replace", self._address[node], "lladdr", _NOBODY, "dev", BRIDGE, "nud", "permanent")
        if way is not Cut.IN:
            away = ("lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")
            _run(*at_node(node), "ip", "neigh", "replace", HUB, *away)

    def mend(self, node: str) -> None:
        """Have the wire whole again. A repeat does nothing."""
        _try("ip", "neigh", "del", self._address[node], "dev", BRIDGE)
        _try(*at_node(node), "ip", "neigh", "del", HUB, "dev", "eth0")

    def unplug(self, node: str) -> None:
        """Take the carrier away at both ends."""
        _run("ip", "link", "set", f"to-{node}", "down")

    def plug(self, node: str) -> None:
        """Give the carrier back. A repeat does nothing."""
        _run("ip", "link", "set", f"to-{node}", "up")


def at_node(node: str) -> tuple[str, ...]:
    """Return the words before a command that shall run in a node's network.

    Not ``ip netns exec``: that mounts /sys anew, and the control groups would be gone.
    """
    return ("nsenter", f"--net={_NETNS / node}")


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, stdin=subprocess.DEVNULL)


def _try(*words: str) -> None:
    subprocess.run(words, check=False, capture_output=True, stdin=subprocess.DEVNULL)
