"""How many jobs may be open, on both stores; and the commands that close and open the door."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy.orm import Session

from coordinator.cli.main import main
from coordinator.config import make_config
from coordinator.domain.quotas import Load, Quotas, check_room
from coordinator.domain.records import JobRecord
from coordinator.founding import Founding, found
from coordinator.services.desk import MOST_WAITING, Changed, Turn
from coordinator.services.evaluation import settle
from coordinator.services.jobs import cancel_job
from coordinator.services.submission import Intake, submit_job
from coordinator.store.jobs import JobRepository
from coordinator.store.outboxes import CommandRepository
from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.clock import utc_now
from hansa.runtime.drain import DrainFile
from tests.support.job_world import ADA, NODES, JobWorld, job_trust, open_world
from tests.support.live_coordinator import trust_keys
from tests.support.stores import empty_store_url, postgres

__all__ = ["empty_store_url", "postgres"]

ROOM = {"jobs": 9, "jobs_of_researcher": 9, "jobs_of_project": 9, "commands_of_node": 9}


@pytest.fixture
async def world(empty_store_url: str) -> AsyncIterator[JobWorld]:
    with open_world(empty_store_url) as made:
        yield made
        await made.desk.settled()


async def submit(world: JobWorld, signed: Signed, quotas: Mapping[str, int], caller: str = "ada") -> JobRecord:
    intake = Intake(Quotas(**{**ROOM, **quotas}))
    work = partial(submit_job, signed=signed, caller=caller, turn=world.desk.turn(), intake=intake)
    return await world.desk.commit(work)


@pytest.mark.parametrize("full", sorted(ROOM))
def test_one_more_has_room_exactly_while_nothing_is_full(full: str) -> None:
    def load(count: int) -> Load:
        found: dict[str, Any] = dict.fromkeys(("jobs", "jobs_of_researcher", "jobs_of_project"), 0)
        found["waiting"] = {"FI": 0, "ES": 0}
        if full == "commands_of_node":
            found["waiting"]["ES"] = count
        else:
            found[full] = count
        return Load(**found)

    check_room(Quotas(**ROOM), load(8))
    with pytest.raises(HansaError) as caught:
        check_room(Quotas(**ROOM), load(9))
    assert caught.value.reason is (Reason.OVERLOADED if full == "jobs" else Reason.QUOTA_EXCEEDED)
    assert caught.value.retry_seconds > 0


@pytest.mark.parametrize(
    ("full", "field"),
    [("jobs_of_researcher", "submitter"), ("jobs_of_project", "project"), ("commands_of_node", "datasets")],
)
async def test_what_is_full_refuses_the_next_job_and_no_repeat_of_one(world: JobWorld, full: str, field: str) -> None:
    first = world.signed()
    job = await submit(world, first, {full: 1})
    with pytest.raises(HansaError) as caught:
        await submit(world, world.signed(), {full: 1})
    assert (caught.value.reason, caught.value.field) == (Reason.QUOTA_EXCEEDED, field)
    assert (await submit(world, first, {full: 1})).job_id == job.job_id


async def test_one_researchers_many_jobs_leave_room_for_anothers(world: JobWorld) -> None:
    for _ in range(2):
        await submit(world, world.signed(), {"jobs_of_researcher": 2})
    with pytest.raises(HansaError):
        await submit(world, world.signed(), {"jobs_of_researcher": 2})
    theirs = world.signed(signer="bob", submitter="bob")
    await submit(world, theirs, {"jobs_of_researcher": 2}, caller="bob")


async def test_a_job_that_has_ended_makes_room(world: JobWorld) -> None:
    job = await submit(world, world.signed(), {"jobs_of_researcher": 1})
    await world.desk.commit(partial(cancel_job, job_id=job.job_id, asker=ADA, request_id="r", turn=world.desk.turn()))
    world.clock.now = job.not_after
    await world.desk.commit(partial(_settle_all, turn=world.desk.turn()))
    await submit(world, world.signed(), {"jobs_of_researcher": 1})


def _acknowledge(session: Session, node: str, now: datetime) -> None:
    CommandRepository(session).acknowledge(node, 1, now)


def _settle_all(session: Session, turn: Turn) -> tuple[None, Changed]:
    (job_id,) = JobRepository(session).open_jobs()
    return None, settle(session, job_id, turn)


async def test_commands_that_were_fetched_make_room(world: JobWorld) -> None:
    await submit(world, world.signed(), {"commands_of_node": 1})
    for node in NODES:
        world.database.run_sync(partial(_acknowledge, node=node, now=world.clock.now))
    await submit(world, world.signed(), {"commands_of_node": 1})


async def test_of_many_at_once_no_more_come_in_than_there_is_room_for(world: JobWorld) -> None:
    outcomes = await asyncio.gather(
        *(submit(world, world.signed(), {"jobs_of_researcher": 3}) for _ in range(8)), return_exceptions=True
    )
    assert sum(isinstance(one, JobRecord) for one in outcomes) == 3


async def test_while_too_many_changes_wait_no_further_submission_is_begun(world: JobWorld) -> None:
    hold, begun = threading.Event(), threading.Event()

    def slow(_session: Session) -> tuple[None, Changed]:
        begun.set()
        hold.wait()
        return None, Changed()

    waiting = [asyncio.create_task(world.desk.commit(slow)) for _ in range(MOST_WAITING)]
    try:
        await asyncio.to_thread(begun.wait)
        with pytest.raises(HansaError) as caught:
            world.desk.check_room()
        assert caught.value.reason is Reason.OVERLOADED
    finally:
        hold.set()
        await asyncio.gather(*waiting)
    world.desk.check_room()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    now = utc_now()
    place, trust = tmp_path / "state", job_trust(now)
    config = make_config(federation="demo")
    found(Founding(place, config, trust.files, trust_keys(trust)), store_uuid="u" * 36, now=now)
    return place


def command(*words: str | Path) -> str:
    run = CliRunner().invoke(main, [str(word) for word in words])
    assert run.exit_code == 0, run.output
    return run.output


def status(state: Path) -> dict[str, Any]:
    shown = json.loads(command("status", state, "--output", "json"))
    assert isinstance(shown, dict)
    return shown


def test_the_operator_closes_the_door_and_opens_it_again(state: Path) -> None:
    assert not status(state)["draining"]
    assert "0 open jobs go on" in command("drain", state)
    assert status(state)["draining"]
    since = status(state)["draining_since"]
    command("drain", state)
    assert status(state)["draining_since"] == since
    assert DrainFile(state).is_set()
    command("drain", state, "--off")
    command("drain", state, "--off")
    assert not status(state)["draining"]
    assert "draining" in command("status", state)


def test_where_there_is_no_coordinator_there_is_nothing_to_drain(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["drain", str(tmp_path)])
    assert run.exit_code == 1
    assert "STATE_FOLDER_INVALID" in run.output
    assert list(tmp_path.iterdir()) == []


def test_a_wish_that_cannot_be_written_is_told_and_none(tmp_path: Path) -> None:
    with pytest.raises(HansaError) as caught:
        DrainFile(tmp_path / "gone").express(utc_now(), off=False)
    assert caught.value.reason is Reason.STATE_FOLDER_INVALID
