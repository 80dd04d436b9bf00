"""Restored databases, a copied node and an ended certificate, on real processes: nothing is lost, nothing is released twice.

People do what the runbooks say: docs/runbooks/node-restored-from-backup.md,
coordinator-lost.md and certificate-expired.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.demo_data import prepare
from deploy.local.layout import REPOSITORY
from tests.support.local_federation import Federation
from tests.support.nemesis_check import NodeStore
from tests.support.nemesis_evidence import read_node
from tests.support.restored_federation import Operators, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NODES = ("FI", "GB")
# The node that things are done to.
NODE = NODES[0]
# So many jobs are asked while a node and its copy run.
JOBS = 3
FENCED = "EPOCH_FENCED"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operators]:
    data = prepare(REPOSITORY / ".cache")
    federation = Federation.start(tmp_path_factory.mktemp("restores") / "hansa", ",".join(NODES), data)
    try:
        yield Operators(federation, NODES)
    finally:
        federation.stop()


@pytest.fixture
def at_work(made: Operators) -> Iterator[Operators]:
    """The federation with all its daemons."""
    made.start_all()
    made.wait_for_nodes()
    yield made
    made.federation.at_node(NODE, "policy", "set", "release", "auto")


def stored(at_work: Operators, folder: Path) -> NodeStore:
    """Return what the node's store says now, by way of a backup."""
    at_work.back_node_up(NODE, folder)
    return read_node(folder / "store.db")


def releases(store: NodeStore) -> Counter[str]:
    """Return how often each run was released, by the node's log."""
    return Counter(str(facts["run"]) for action, facts in store.log if action == "summary_released")


def test_a_node_restored_to_before_a_release_is_reconciled_and_the_release_is_neither_lost_nor_made_again(
    at_work: Operators, tmp_path: Path
) -> None:
    at_work.back_node_up(NODE, tmp_path / "backup")
    released = at_work.submit()
    result = at_work.completed(released)
    run = at_work.run_of(released, NODE)

    at_work.stop_node(NODE)
    waiting = at_work.submit()
    at_work.restore_node(NODE, tmp_path / "backup")
    assert at_work.federation.job(waiting)["state"] == "PENDING", "until it is reconciled it releases nothing"
    at_work.reconcile(NODE)

    at_work.completed(waiting)
    assert at_work.completed(released) == result
    at_work.proven(released, waiting)
    after = stored(at_work, tmp_path / "after")
    assert after.runs[run].state == "RELEASED"
    assert releases(after)[run] == 0, "the restored node made no release of its own"
    assert releases(after)[at_work.run_of(waiting, NODE)] == 1


def test_a_coordinator_restored_to_before_some_jobs_is_told_them_again_and_their_results_verify(
    at_work: Operators, tmp_path: Path
) -> None:
    before = at_work.submit()
    at_work.completed(before)
    at_work.back_coordinator_up(tmp_path / "backup")
    forgotten = at_work.submit()
    result = at_work.completed(forgotten)
    assert at_work.federation.at_node(NODE, "policy", "set", "release", "manual").code == 0
    open_ = at_work.submit()
    eventually(
        lambda: at_work.federation.run_state(open_, NODE) == "AWAITING_RELEASE", "the summary waits for a person"
    )
    runs = {job: at_work.run_of(job, NODE) for job in (before, forgotten, open_)}

    at_work.restore_coordinator(tmp_path / "backup")
    assert at_work.completed(forgotten) == result
    for node in NODES:
        at_work.accept_log(node)
    decided = at_work.federation.decide(NODE, "release", runs[open_], "Counts only.")
    assert decided.code == 0, decided.err
    at_work.completed(open_)
    assert at_work.federation.at_node(NODE, "policy", "set", "release", "auto").code == 0
    later = at_work.submit()
    at_work.completed(later)

    at_work.proven(before, forgotten, open_, later)
    assert {job: at_work.run_of(job, NODE) for job in runs} == runs
    made = releases(stored(at_work, tmp_path / "after"))
    assert [made[run] for run in runs.values()] == [1, 1, 1]


def test_a_copy_of_a_node_that_runs_beside_it_is_fenced_and_makes_no_second_release_of_anything(
    at_work: Operators, tmp_path: Path
) -> None:
    first = at_work.submit()
    result = at_work.completed(first)
    asked: list[str] = []
    with at_work.copy_of(NODE, tmp_path / "copy"):
        logs = (at_work.federation.layout.node(NODE).agent.log_file, tmp_path / "copy" / "agent.log")

        def noticed() -> bool:
            """Say whether one of the two was shut out by the other; ask meanwhile."""
            if at_work.is_apart(NODE):
                return True
            if len(asked) < JOBS:
                asked.extend(at_work.submit_if_possible())
            return any(FENCED in log.read_text(errors="replace") for log in logs if log.exists())

        eventually(noticed, "the coordinator has noticed that there are two")
    at_work.stop_node(NODE)
    at_work.federation.restart_node(NODE)
    eventually(lambda: at_work.is_apart(NODE) or NODE in at_work.connected(), "the node is back or apart")
    if at_work.is_apart(NODE):
        at_work.come_back(NODE, tmp_path / "backup")

    last = at_work.submit()
    at_work.completed(last)
    assert at_work.completed(first) == result
    at_work.proven(first, last)
    ended = [job for job in asked if at_work.federation.job(job)["state"] == "COMPLETED"]
    at_work.proven(*ended)
    made = releases(stored(at_work, tmp_path / "after"))
    assert all(count == 1 for count in made.values())


def test_a_node_whose_certificate_ends_during_a_run_comes_back_with_another_and_its_release_arrives(
    at_work: Operators,
) -> None:
    federation = at_work.federation
    assert federation.at_node(NODE, "policy", "set", "release", "manual").code == 0
    job = at_work.submit()
    eventually(lambda: federation.run_state(job, NODE) == "AWAITING_RELEASE", "the summary waits for a person")
    at_work.let_certificate_end(NODE)
    eventually(lambda: at_work.status(NODE).get("reason") == "CERTIFICATE_REFUSED", "the node says what is wrong")
    decided = federation.decide(NODE, "release", at_work.run_of(job, NODE), "Counts only.")
    assert decided.code == 0, decided.err
    assert federation.job(job)["state"] == "PENDING"

    at_work.enrol_again(NODE)
    eventually(lambda: at_work.status(NODE).get("state") == "ONLINE", "the node is back")
    at_work.completed(job)
    at_work.proven(job)
