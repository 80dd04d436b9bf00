"""Which workers live, and proof that nothing runs any more of what a dead one began.

Each worker program holds a card: a file in the node's state folder that it keeps
locked until it ends, however it ends, since the kernel gives the lock free. The
card says where the worker makes its control groups, so that the agent, which
shares the host, can empty the group of an execution whose worker has died.
Likewise a worker holds a ticket for each message that it is at, from before the
claim to after the report: who holds none starts nothing.

A lock tells more than a process number: numbers are given out again, and mean
nothing in another container.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hansa.contract.ids import is_run_id
from node_agent.execution.cgroups import Group, Groups
from node_agent.run_rules import RunFacts, WorkerSign

_CARD: Final = ".card"
_TICKET: Final = ".ticket"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,80}")
_HOST_CHARACTERS: Final = 32
_CLEAR_PATIENCE_SECONDS: Final = 2.0
_STEP_SECONDS: Final = 0.005
_PROC: Final = Path("/proc")


def node_name(state_dir: Path) -> str:
    """Return the name under which the node's control groups stand on this host."""
    return hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:12]


def draw_worker_name() -> str:
    """Return a name for this worker program that none before it has had."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:_HOST_CHARACTERS].lstrip("-.")
    return f"{host or 'host'}-{os.getpid()}-{secrets.token_hex(4)}"


def _place() -> str:
    """Return in which namespaces this process sees processes and control groups."""
    return " ".join(os.readlink(f"/proc/self/ns/{kind}") for kind in ("cgroup", "pid"))  # noqa: PTH115 # no file


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a worker tells of itself: where its groups are, and in which namespaces that is true."""

    worker: str
    place: str
    node: str
    # 0: it makes no groups.
    version: int
    folders: Mapping[str, str]

    @property
    def groups(self) -> Groups | None:
        """Where it makes its groups."""
        if not self.version:
            return None
        return Groups(self.version, {name: Path(folder) for name, folder in self.folders.items()})


@contextlib.contextmanager
def held_card(folder: Path, worker: str, node: str, groups: Groups | None) -> Iterator[None]:
    """Hold the card of this program in ``folder``. The agent removes it some time after."""
    card = Card(
        worker=worker,
        place=_place(),
        node=node,
        version=groups.version if groups else 0,
        folders={name: str(path) for name, path in groups.folders.items()} if groups else {},
    )
    folder.mkdir(mode=0o700, exist_ok=True)
    with _locked(folder / f"{worker}{_CARD}", json.dumps(asdict(card))):
        yield


def held_ticket(folder: Path, claim: str) -> contextlib.AbstractContextManager[None]:
    """Return a context that holds the ticket for a claim with the token ``claim``."""
    return _locked(folder / f"{claim}{_TICKET}", "")


@contextlib.contextmanager
def _locked(path: Path, content: str) -> Iterator[None]:
    part = path.with_name(f"{path.name}.part")
    with part.open("x") as file:
        # Before anybody can see it: who finds it free takes its holder for dead.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(content)
        file.flush()
        part.replace(path)
        yield


class Premises:
    """The agent's look at the workers of its host. All of it blocks."""

    def __init__(self, state_dir: Path) -> None:
        """Take the node's state folder."""
        self._folder = state_dir / "workers"
        self._node = node_name(state_dir)

    def signs(self, runs: Sequence[RunFacts]) -> Mapping[tuple[str, int], WorkerSign]:
        """Return of each running execution (run id, number) whether its worker is still at it."""
        return {(run.run_id, run.execution): self._sign(run) for run in runs}

    def _sign(self, run: RunFacts) -> WorkerSign:
        if self._holder(f"{run.worker}{_CARD}") is WorkerSign.DEAD:
            return WorkerSign.DEAD
        # It may live and yet not be at this run: the answer to its claim was lost, say.
        return self._holder(f"{run.claim}{_TICKET}")

    def _holder(self, name: str) -> WorkerSign:
        if not _NAME.fullmatch(name):
            return WorkerSign.UNKNOWN
        try:
            file = (self._folder / name).open("rb")
        except OSError:
            return WorkerSign.UNKNOWN
        with file:
            try:
                # Shared: who asks at the same time must not take us for the holder.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return WorkerSign.ALIVE
            except OSError:
                return WorkerSign.UNKNOWN
        return WorkerSign.DEAD

    def clear(self, run: RunFacts) -> bool:
        """Kill what is left of a running execution; return whether it is proven that nothing of it runs.

        Not proven where its worker's processes cannot be seen from here.
        """
        cards = self._cards()
        if any(card.worker == run.worker and card.place != _place() for card in cards):
            return False
        return self.clear_execution(run.run_id, run.execution)

    def clear_execution(self, run_id: str, execution: int) -> bool:
        """Kill what there is of an execution on this host; return whether nothing of it runs here."""
        groups = list(self._groups(self._cards(), f"{run_id}-{execution}"))
        gone = [group.kill(_CLEAR_PATIENCE_SECONDS) and group.remove() for group in groups]
        # A frozen worker may not have put into the group yet what it had started.
        return _kill_inside(run_id, execution) and all(gone)

    def executions(self) -> Sequence[tuple[str, int]]:
        """Return the executions (run id, number) that have a control group here, empty or not."""
        found = set()
        for card in self._cards():
            if card.groups is not None and card.place == _place():
                found |= {group.name for group in card.groups.left_over(card.node, "")}
        return sorted(execution for name in found if (execution := _execution(name)) is not None)

    def forget(self, needed: Sequence[RunFacts]) -> None:
        """Remove cards and tickets of the dead, but for those of ``needed``, of which a proof is still wanted."""
        kept = {f"{run.worker}{_CARD}" for run in needed} | {f"{run.claim}{_TICKET}" for run in needed}
        for card in self._cards():
            # Else nothing might lead to what still runs there.
            if card.groups is not None and card.groups.left_over(card.node, ""):
                kept.add(f"{card.worker}{_CARD}")
        for path in [*self._folder.glob(f"*{_CARD}"), *self._folder.glob(f"*{_TICKET}")]:
            if path.name not in kept and self._holder(path.name) is WorkerSign.DEAD:
                path.unlink(missing_ok=True)

    def _cards(self) -> Sequence[Card]:
        cards = []
        for path in sorted(self._folder.glob(f"*{_CARD}")):
            with contextlib.suppress(OSError, ValueError, TypeError):
                cards.append(Card(**json.loads(path.read_bytes())))
        return cards

    def _groups(self, cards: Sequence[Card], name: str) -> Iterator[Group]:
        """Yield the group ``name`` of every place where a worker makes its groups."""
        places = {tuple(sorted(card.folders.items())): card for card in cards if card.place == _place()}
        for card in places.values():
            if card.groups is not None:
                yield card.groups.group(card.node, name)


def _execution(name: str) -> tuple[str, int] | None:
    run_id, _, number = name.rpartition("-")
    return (run_id, int(number)) if is_run_id(run_id) and number.isdecimal() else None


def _kill_inside(run_id: str, execution: int) -> bool:
    """Kill who still has the execution's scratch folder mounted; return whether nobody has it any more."""
    give_up = time.monotonic() + _CLEAR_PATIENCE_SECONDS
    while inside := _processes_inside(run_id, execution):
        for pid in inside:
            _kill_if_inside(pid, run_id, execution)
        if time.monotonic() > give_up:
            return False
        time.sleep(_STEP_SECONDS)
    return True


def _processes_inside(run_id: str, execution: int) -> Sequence[int]:
    """Return the processes in whose box the execution's scratch folder is, with groups or without."""
    with os.scandir(_PROC) as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdecimal()]
    return [pid for pid in pids if _is_inside(pid, run_id, execution)]


def _is_inside(pid: int, run_id: str, execution: int) -> bool:
    try:
        return f"/{run_id}/{execution} ".encode() in (_PROC / str(pid) / "mountinfo").read_bytes()
    except OSError:
        return False


def _kill_if_inside(pid: int, run_id: str, execution: int) -> None:
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            # Asked again with the process in hand: the number may have gone to somebody else.
            if _is_inside(pid, run_id, execution):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
