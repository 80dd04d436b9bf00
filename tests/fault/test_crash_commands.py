"""What dies outside of a running federation: first starts, `init`, enrolment, erasure; and the files that writers leave."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest
from sqlalchemy.orm import Session

import coordinator.founding
from coordinator.bootstrap import open_foundation
from coordinator.config import make_config
from coordinator.domain.membership import NodeState
from coordinator.founding import Founding, found
from coordinator.services.erasure import erase_words
from coordinator.services.nodes import Act
from coordinator.store.audit_check import verify_log
from coordinator.store.database import Database as CoordinatorDatabase
from coordinator.store.schema import is_current, migrate
from coordinator.store.sessions import SessionRepository
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.clock import utc_now
from hansa.runtime.durable import sweep_parts, write_durably
from node_agent.bootstrap import _sweep
from node_agent.config import StateFolder, create_state_folder
from node_agent.datasets import Datasets
from node_agent.keys import credential, enrolment, identity
from node_agent.keys.credential import is_enrolled, load_credential
from node_agent.keys.identity import load_identity
from node_agent.link.encoding import WireReporter
from node_agent.reporting import Bells
from node_agent.store.database import Database as NodeDatabase
from node_agent.store.outbox import found_store, store_row
from tests.integration.test_jobs_over_the_wire import call, joined, reason, submission
from tests.support.agent import make_snapshot
from tests.support.crash_points import CrashingCoordinatorStore, CrashingNodeStore, Gone, Phase, Plan, name_of
from tests.support.job_world import job_trust, released
from tests.support.live_coordinator import FEDERATION, free_ports, live_coordinator, trust_keys
from tests.support.scripted_node import release, report
from tests.support.statements import make_statement


class SoberLife:
    """A life whose dead are told that they are dead."""

    def __init__(self) -> None:
        self._over = False

    def has_ended(self) -> bool:
        return self._over

    def end(self) -> None:
        self._over = True

    async def nothing_more(self) -> Any:
        raise Gone


class Killed(BaseException):
    """What a kill is to the code that it hits, but for its ``finally``."""


@pytest.mark.parametrize("phase", Phase)
async def test_a_node_that_dies_at_its_first_start_has_one_store_of_one_name(tmp_path: Path, phase: Phase) -> None:
    def found_one(session: Session) -> None:
        found_store(session, str(uuid4()))

    plan = Plan()
    plan.arm(name_of(found_one), phase)
    names = set()
    for attempt in range(3):
        store = CrashingNodeStore(NodeDatabase.open(tmp_path / "node.db"), plan, SoberLife())
        try:
            await store.run(found_one)
            names.add(await store.inner.run(lambda session: store_row(session).store_uuid))
        except Gone:
            assert attempt == 0
        finally:
            store.close()
    assert plan.fired == 1
    assert len(names) == 1


@pytest.mark.parametrize("phase", Phase)
def test_a_migration_that_dies_is_done_by_the_next(tmp_path: Path, phase: Phase) -> None:
    plan, url = Plan(), f"sqlite:///{tmp_path / 'store.db'}"
    plan.arm("coordinator.store.schema._run", phase)
    for expected in (Gone, None):
        inner = CoordinatorDatabase.open(url)
        try:
            if expected is None:
                migrate(inner)
                assert is_current(inner)
            else:
                with pytest.raises(expected):
                    migrate(CrashingCoordinatorStore(inner, plan, SoberLife()))
        finally:
            inner.close()
    assert plan.fired == 1


def _founding(place: Path) -> Founding:
    people, enrol, node = free_ports(3)
    config = make_config(federation=FEDERATION, people_port=people, enrolment_port=enrol, node_port=node)
    trust = job_trust(utc_now(), ("FI",))
    return Founding(place, config, trust.files, trust_keys(trust))


def _found_and_die(place: Path, phase: Phase) -> None:
    """Begin a coordinator in a process that is killed at the transaction; for a process of its own."""

    class KilledLife(SoberLife):
        def end(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    plan = Plan()
    plan.arm("coordinator.founding._make", phase)

    class Doors:
        @staticmethod
        def open(url: str) -> CrashingCoordinatorStore:
            return CrashingCoordinatorStore(CoordinatorDatabase.open(url), plan, KilledLife())

    with patch.object(coordinator.founding, "Database", Doors):
        found(_founding(place), store_uuid=str(uuid4()), now=utc_now())


@pytest.mark.parametrize("phase", Phase)
def test_an_init_that_was_killed_leaves_no_key_behind_once_it_is_repeated(tmp_path: Path, phase: Phase) -> None:
    place = tmp_path / "coordinator"
    process = multiprocessing.get_context("spawn").Process(target=_found_and_die, args=(place, phase))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    process.close()
    assert not place.exists()
    found(_founding(place), store_uuid=str(uuid4()), now=utc_now())
    assert [path.name for path in tmp_path.iterdir()] == ["coordinator"]
    foundation = open_foundation(place, utc_now)
    try:
        assert foundation.database.run_sync(verify_log).first_wrong is None
    finally:
        foundation.database.close()


@pytest.mark.parametrize("phase", Phase)
def test_an_erasure_that_dies_is_done_by_the_next_and_the_log_verifies(tmp_path: Path, phase: Phase) -> None:
    found(_founding(tmp_path / "coordinator"), store_uuid=str(uuid4()), now=utc_now())
    foundation = open_foundation(tmp_path / "coordinator", utc_now)

    def erase(session: Session) -> int:
        return erase_words(session, index=None, person="init", act=Act("root", utc_now()))

    plan = Plan()
    plan.arm(name_of(erase), phase)
    try:
        with pytest.raises(Gone):
            CrashingCoordinatorStore(foundation.database, plan, SoberLife()).run_sync(erase)
        # Who asks again after it was done is told that there is nothing to erase.
        with suppress(HansaError):
            foundation.database.run_sync(erase)
        assert foundation.database.run_sync(verify_log).first_wrong is None
    finally:
        foundation.database.close()


def _dying(at: int, *, after: bool) -> Callable[..., None]:
    """Return ``write_durably`` that dies at the write ``at``: before it, or right after."""
    count = 0

    def write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        nonlocal count
        count += 1
        if count == at and not after:
            raise Killed
        write_durably(path, data, mode=mode)
        if count == at:
            raise Killed

    return write


async def test_an_enrolment_that_dies_at_any_file_is_ended_by_its_repeat_with_the_same_keys(tmp_path: Path) -> None:
    async with live_coordinator(tmp_path / "coordinator") as live:
        died, at = True, 0
        while died:
            at += 1
            for after in (False, True):
                node = f"N{at}{'A' if after else 'B'}"
                state = create_state_folder(tmp_path / node)
                token = await live.invite(node)
                died = await asyncio.to_thread(_enrol_and_die, token, state, at, after=after)
                if not died:
                    break
                made = {path.name: path.read_bytes() for path in state.keys.glob("*.key")}
                if not is_enrolled(state):
                    await asyncio.to_thread(enrolment.enrol, token, state)
                # What was made before the death is what the node has for good.
                named = {name: data for name, data in made.items() if name != "pending.key"}
                assert {name: (state.keys / name).read_bytes() for name in named} == named
                pending = made.get("pending.key")
                assert pending in (None, load_credential(state).key_pem)
                load_identity(state)
        assert at > 5, "keys, authority, root, settings, credential"


def _enrol_and_die(token: str, state: StateFolder, at: int, *, after: bool) -> bool:
    write = _dying(at, after=after)
    with (
        patch.object(enrolment, "write_durably", write),
        patch.object(credential, "write_durably", write),
        patch.object(identity, "write_durably", write),
    ):
        try:
            enrolment.enrol(token, state)
        except Killed:
            return True
    return False


def test_what_a_killed_writer_left_is_removed_when_the_agent_starts(tmp_path: Path) -> None:
    state = create_state_folder(tmp_path / "state")
    (state.trust / "metadata").mkdir(parents=True)
    whole = [state.keys / "credential.pem", state.trust / "metadata" / "1.root.json", state.policy_file]
    for path in whole:
        write_durably(path, b"whole")
        path.with_name(f".{path.name}.{'0' * 16}.part").write_bytes(b"half")
    (state.runs / ".other.part").write_bytes(b"a run's own")
    _sweep(state)
    assert all(path.read_bytes() == b"whole" for path in whole)
    assert [path for folder in (state.keys, state.trust) for path in folder.rglob("*.part")] == []
    assert sorted(path.name for path in state.path.glob(".*.part")) == []
    assert (state.runs / ".other.part").exists()
    assert sweep_parts(state.keys) == 0


async def test_the_snapshot_of_a_removed_dataset_goes_though_another_dataset_has_the_same(tmp_path: Path) -> None:
    state = create_state_folder(tmp_path / "state")
    database = NodeDatabase.open(state.database)
    datasets = Datasets(database=database, state=state, reporter=WireReporter("FI"), bells=Bells(), clock=utc_now)
    database.run_sync(lambda session: found_store(session, str(uuid4())))
    try:
        for name in ("one", "two"):
            staging = make_snapshot(state.datasets / f".incoming-{name}")
            await datasets.add(name, staging)
        # The agent dies after the row has gone and before the folder has.
        with patch("node_agent.datasets.shutil.rmtree", side_effect=Killed), pytest.raises(Killed):
            await datasets.remove("two")
        assert (state.datasets / "two").exists()
        await datasets.sweep()
        assert [path.name for path in state.datasets.iterdir()] == ["one"]
        with pytest.raises(HansaError):
            await datasets.remove("two")
    finally:
        database.close()


async def test_a_snapshot_that_may_not_become_a_dataset_is_its_importers_again(tmp_path: Path) -> None:
    state = create_state_folder(tmp_path / "state")
    database = NodeDatabase.open(state.database)
    datasets = Datasets(database=database, state=state, reporter=WireReporter("FI"), bells=Bells(), clock=utc_now)
    database.run_sync(lambda session: found_store(session, str(uuid4())))
    try:
        staging = make_snapshot(state.datasets / ".incoming-one")
        with patch("node_agent.datasets.MAX_DATASETS", 0), pytest.raises(HansaError):
            await datasets.add("one", staging)
        assert staging.is_dir()
        assert list((state.datasets / "one").iterdir()) == []
        await datasets.add("one", staging)
    finally:
        database.close()


async def test_a_node_that_uploads_other_bytes_than_it_has_signed_is_set_apart(tmp_path: Path) -> None:
    async with live_coordinator(tmp_path / "coordinator") as live:
        node = await joined(live, "FI")
        await call(live, "SubmitJob", submission(live, "FI"))
        offer, content = (await node.take_command()).offer, released(99, 198, 40)
        statement = make_statement(offer.job.payload, "FI", content, key=live.keys["FI"])
        await node.tell(
            report(offer.run_id, "ACCEPTED"),
            report(offer.run_id, "RUNNING", execution=1),
            release(statement, content),
            report(offer.run_id, "RELEASED", execution=1),
        )
        assert await reason(node.upload(offer.run_id, released(ac=1))) is Reason.SUMMARY_CONFLICT
        # Its session ends too: what else it has to say is not heard.
        assert await node.ended() is Reason.NODE_QUARANTINED
        standing = await live.foundation.database.run(lambda session: SessionRepository(session).standing("FI"))
        assert standing.state is NodeState.QUARANTINED
