"""Cards and tickets: how the agent tells whether a worker lives, and what it proves of a dead one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hansa.contract.states import RunState
from node_agent.execution.presence import Premises, draw_worker_name, held_card, held_ticket
from node_agent.run_rules import RunFacts, WorkerSign

RUN_ID = "5" * 32
CLAIM = "c" * 32
_PROGRAM = """
import sys, time
from pathlib import Path
from node_agent.execution.presence import held_card, held_ticket
folder = Path(sys.argv[1])
with held_card(folder, "worker-1", "node", None), held_ticket(folder, sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def premises(tmp_path: Path) -> Premises:
    (tmp_path / "workers").mkdir()
    return Premises(tmp_path)


def run(worker: str = "worker-1", claim: str = CLAIM) -> RunFacts:
    at = datetime(2026, 3, 1, tzinfo=UTC)
    return RunFacts(
        run_id=RUN_ID,
        attempt=1,
        execution=1,
        state=RunState.RUNNING,
        not_after=at,
        created_at=at,
        worker=worker,
        claim=claim,
    )


def sign(premises: Premises, of: RunFacts) -> WorkerSign:
    return premises.signs([of])[RUN_ID, 1]


@contextmanager
def worker(folder: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", _PROGRAM, str(folder), CLAIM]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_worker_is_alive_until_it_is_killed_however_suddenly(premises: Premises, tmp_path: Path) -> None:
    with worker(tmp_path / "workers") as process:
        assert sign(premises, run()) is WorkerSign.ALIVE
        process.send_signal(signal.SIGSTOP)
        assert sign(premises, run()) is WorkerSign.ALIVE
        process.kill()
        process.wait()
        assert sign(premises, run()) is WorkerSign.DEAD


def test_a_worker_that_lives_but_is_not_at_the_run_any_more_is_dead_to_it(premises: Premises, tmp_path: Path) -> None:
    with held_card(tmp_path / "workers", "worker-1", "node", None):
        with held_ticket(tmp_path / "workers", CLAIM):
            assert sign(premises, run()) is WorkerSign.ALIVE
        assert sign(premises, run()) is WorkerSign.DEAD


@pytest.mark.parametrize(("name", "claim"), [("worker-9", ""), ("", ""), ("../worker-1", "../x"), ("a/b", "c\n")])
def test_of_a_worker_without_a_card_nothing_is_known(premises: Premises, name: str, claim: str) -> None:
    assert sign(premises, run(name, claim)) is WorkerSign.UNKNOWN


def test_nothing_is_proven_of_a_worker_whose_processes_cannot_be_seen(premises: Premises, tmp_path: Path) -> None:
    with held_card(tmp_path / "workers", "worker-1", "node", None):
        assert premises.clear(run())
        card = tmp_path / "workers" / "worker-1.card"
        card.write_text(card.read_text().replace("pid:[", "pid:[1"))
        assert not premises.clear(run())


def test_what_the_dead_leave_is_removed_unless_a_proof_is_still_wanted(premises: Premises, tmp_path: Path) -> None:
    folder = tmp_path / "workers"
    with held_card(folder, "worker-1", "node", None), held_ticket(folder, CLAIM):
        premises.forget([])
        assert len(list(folder.iterdir())) == 2
    premises.forget([run()])
    assert len(list(folder.iterdir())) == 2
    premises.forget([])
    assert list(folder.iterdir()) == []


def test_no_two_workers_have_one_name_even_if_their_process_numbers_are_the_same() -> None:
    assert draw_worker_name() != draw_worker_name()
    assert len(draw_worker_name()) <= 64


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_who_has_an_executions_folder_mounted_is_killed(premises: Premises, tmp_path: Path) -> None:
    work = tmp_path / "runs" / RUN_ID / "1"
    other = tmp_path / "runs" / RUN_ID / "11"
    work.mkdir(parents=True)
    other.mkdir()
    # The loop is the shell's own, so that one process has the mount.
    script = 'mount --bind "$1" /mnt && echo in && read forever'
    boxes = [
        subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, "sh", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for folder in (work, other)
    ]
    try:
        for box in boxes:
            assert box.stdout is not None
            assert box.stdout.readline() == b"in\n"
        assert premises.clear_execution(RUN_ID, 1)
        assert boxes[0].wait(30) == -signal.SIGKILL
        assert boxes[1].poll() is None
    finally:
        for box in boxes:
            box.kill()
            box.communicate()
