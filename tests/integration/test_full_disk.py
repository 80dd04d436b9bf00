"""On a disk that is full to the last byte nothing is acknowledged that is not kept, and nothing is broken for good.

The disks are real ones, of a few MiB, mounted for the test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from coordinator.store.audit import AuditRepository
from coordinator.store.audit_check import verify_log
from coordinator.store.database import Database as CoordinatorStore
from coordinator.store.schema import migrate
from hansa.contract.errors import HansaError, Reason
from hansa.contract.margins import MIB, Margins
from hansa.runtime.clock import utc_now
from hansa.runtime.space import RESERVE_FILE, Space
from hansa.v1 import job_service_pb2
from node_agent.store.database import Database as NodeStoreFile
from node_agent.store.models import EventRow
from node_agent.store.outbox import append_event, found_store
from tests.integration.test_jobs_over_the_wire import call, joined, submission
from tests.support.live_coordinator import LiveCoordinator, live_coordinator, reason_of
from tests.support.small_disk import SmallDisk, small_disk

pytestmark = pytest.mark.slow

MARGINS = Margins(reserve=1 * MIB, floor=2 * MIB)
BODY = bytes(range(256)) * 64
MOST = 10_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 12) as mounted:
        yield mounted


class Store:
    """A store of either daemon, and what it has acknowledged."""

    def __init__(self, folder: Path, space: Space) -> None:
        self.path, self.acknowledged = folder / "store.db", 0
        self.space = space
        self.database = self.open()

    def open(self) -> Any:
        raise NotImplementedError

    def write(self, session: Session, number: int) -> None:
        raise NotImplementedError

    def kept(self, session: Session) -> list[int]:
        raise NotImplementedError

    def add(self) -> None:
        """Write a thing, and count it once the store says that it has it."""
        number = self.acknowledged
        self.database.run_sync(lambda session: self.write(session, number))
        self.acknowledged += 1

    def add_until_refused(self) -> None:
        for _ in range(MOST):
            try:
                self.add()
            except HansaError as error:
                assert error.reason is Reason.STORE_FULL  # noqa: PT017 - what is refused has this reason and no other
                return
        raise AssertionError("the disk did not fill")

    def all_kept(self) -> bool:
        return bool(self.database.run_sync(self.kept) == list(range(self.acknowledged)))


class OfCoordinator(Store):
    def open(self) -> CoordinatorStore:
        database = CoordinatorStore.open(f"sqlite:///{self.path}")
        database.when_full(self.space.make_room)
        migrate(database)
        return database

    def write(self, session: Session, number: int) -> None:
        subject = f"{number}:{'x' * 8000}"
        AuditRepository(session).append(at=utc_now(), actor="olga", action="noted", subject=subject, facts={})

    def kept(self, session: Session) -> list[int]:
        assert verify_log(session).first_wrong is None
        found = session.scalars(sa.text('SELECT subject FROM audit ORDER BY "index"'))
        return [int(subject.partition(":")[0]) for subject in found]


class OfNode(Store):
    def open(self) -> NodeStoreFile:
        database = NodeStoreFile.open(self.path)
        database.when_full(self.space.make_room)
        database.run_sync(lambda session: found_store(session, "store"))
        return database

    def write(self, session: Session, number: int) -> None:
        append_event(session, number.to_bytes(4) + BODY, utc_now())

    def kept(self, session: Session) -> list[int]:
        return [int.from_bytes(body[:4]) for body in session.scalars(sa.select(EventRow.body).order_by(EventRow.seq))]


@pytest.fixture(params=[OfCoordinator, OfNode])
def store(request: pytest.FixtureRequest, disk: SmallDisk) -> Iterator[Store]:
    space = Space(disk.path, MARGINS)
    space.begin()
    made: Store = request.param(disk.path, space)
    yield made
    made.database.close()


def test_what_was_acknowledged_on_a_filling_disk_is_there_afterwards_and_the_rest_is_not(
    store: Store, disk: SmallDisk
) -> None:
    store.add()
    store.add_until_refused()
    assert store.all_kept()
    store.database.close()
    disk.clear()
    store.database = store.open()
    assert store.all_kept()


def test_the_reserve_is_there_for_what_has_to_be_written_on_a_full_disk(store: Store, disk: SmallDisk) -> None:
    store.add()
    assert (disk.path / RESERVE_FILE).stat().st_size == MARGINS.reserve
    assert store.space.short == ""
    disk.fill()
    store.add()
    # The room for it was given up, and nothing new is taken in from here on.
    assert not (disk.path / RESERVE_FILE).exists()
    assert store.space.short != ""
    store.add_until_refused()
    assert store.all_kept()


def test_it_recovers_by_itself_when_there_is_room_again(store: Store, disk: SmallDisk) -> None:
    disk.fill()
    store.add_until_refused()
    store.space.look()
    assert store.space.standing()["state"] == "DEGRADED"
    before = store.acknowledged
    disk.clear()
    store.space.look()
    assert store.space.standing()["state"] == "OK"
    assert (disk.path / RESERVE_FILE).exists()
    store.add()
    assert store.acknowledged == before + 1
    assert store.all_kept()


def test_new_work_is_refused_before_the_disk_is_full(store: Store, disk: SmallDisk) -> None:
    disk.fill(leave=MARGINS.floor - 4096)
    store.space.look()
    assert store.space.short != ""
    assert (disk.path / RESERVE_FILE).exists()
    store.add()  # what is under way goes on


def test_a_store_opens_on_a_full_disk(store: Store, disk: SmallDisk) -> None:
    store.add()
    store.database.close()
    disk.fill()
    again = Space(disk.path, MARGINS)
    again.begin()
    store.space = again
    store.database = store.open()
    assert store.all_kept()
    assert again.short != ""


# --- a coordinator whose disk is full ---------------------------------------------


@pytest.fixture
async def live(disk: SmallDisk) -> AsyncIterator[LiveCoordinator]:
    async with live_coordinator(disk.path / "state") as coordinator:
        yield coordinator


async def refusal(pending: Any) -> Reason | None:
    try:
        await pending
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017 - the code is the promise
        return reason_of(error)
    return None


async def test_a_coordinator_on_a_full_disk_refuses_jobs_answers_questions_and_takes_jobs_again(
    live: LiveCoordinator, disk: SmallDisk
) -> None:
    await joined(live, "FI")
    first = (await call(live, "SubmitJob", submission(live, "FI"))).job
    disk.fill()
    live.foundation.space.look()
    refused = submission(live, "FI")
    assert await refusal(call(live, "SubmitJob", refused)) is Reason.STORE_FULL

    shown = await call(live, "GetJob", job_service_pb2.GetJobRequest(job_id=first.job_id))
    assert shown.job.job_id == first.job_id
    listed = await call(live, "ListJobs", job_service_pb2.ListJobsRequest())
    assert [job.job_id for job in listed.jobs] == [first.job_id]

    disk.clear()
    live.foundation.space.look()
    accepted = (await call(live, "SubmitJob", refused)).job
    listed = await call(live, "ListJobs", job_service_pb2.ListJobsRequest())
    assert {job.job_id for job in listed.jobs} == {first.job_id, accepted.job_id}
