"""A job from its submission to its result, on both databases."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from coordinator.domain.records import JobRecord
from coordinator.services.deadlines import due_jobs, keep_deadlines, next_due, pause
from coordinator.services.evaluation import settle
from coordinator.services.jobs import Asker, JobView, cancel_job, job_result, list_jobs, show, view_job, watch_job
from coordinator.services.sessions import Sessions
from coordinator.services.submission import submit_job
from coordinator.store.outboxes import CommandRepository
from coordinator.store.paging import Page
from hansa.contract.digests import bundle_digest, digest
from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import SESSION_SILENCE
from hansa.contract.states import JobState, RunState
from hansa.v1 import node_service_pb2 as wire
from tests.support.job_world import (
    ADA,
    BOB,
    MANIFEST,
    NODES,
    OPERATOR,
    START,
    VARIANT,
    JobWorld,
    open_world,
    released,
)
from tests.support.scripted_node import NodeStore, PlainNode, release, report, run_at
from tests.support.stores import empty_store_url, postgres

__all__ = ["empty_store_url", "postgres"]

COUNT = {"dtype": "int64", "axes": [], "merge": "sum", "released": True}


@pytest.fixture
async def world(empty_store_url: str) -> AsyncIterator[JobWorld]:
    with open_world(empty_store_url) as made:
        yield made
        await made.desk.settled()


@pytest.fixture
async def nodes(world: JobWorld) -> AsyncIterator[dict[str, PlainNode]]:
    sessions = Sessions(world.desk, lambda: b"n" * 32)
    attached = {name: PlainNode(sessions, name, NodeStore(uuid=name)) for name in NODES}
    for node in attached.values():
        await node.attach()
        await node.heartbeat()
    yield attached
    await sessions.close()


async def cancel(world: JobWorld, job_id: str, asker: Asker = ADA, request_id: str = "r") -> JobView:
    work = partial(cancel_job, job_id=job_id, asker=asker, request_id=request_id, turn=world.desk.turn())
    return await world.desk.commit(work)


async def result(world: JobWorld, job_id: str) -> dict[str, Any]:
    found = await world.desk.read(partial(job_result, job_id=job_id, asker=ADA, turn=world.desk.turn()))
    value: dict[str, Any] = json.loads(found.content)
    return value


async def waits_for(world: JobWorld, job_id: str) -> str:
    return show(await world.job(job_id), world.desk.turn()).waits_for


def cancels(world: JobWorld, node: str) -> list[str]:
    stored = world.database.run_sync(lambda s: CommandRepository(s).pending(node, after=0, limit=100))
    bodies = [wire.CommandBody.FromString(command.body) for command in stored]
    return [body.cancel.run_id for body in bodies if body.WhichOneof("body") == "cancel"]


async def let_out(world: JobWorld, node: PlainNode, job: JobRecord, content: bytes) -> None:
    """Let ``node`` say that it has released ``content``, with its signed statement."""
    name = node.store.uuid
    await node.tell(
        release(await world.statement(name, job, content), content),
        report(run_at(job.job_id, name), "RELEASED", execution=1),
    )


async def test_a_job_completes_when_all_summaries_are_there_in_whatever_order(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await world.submit()
    for node in nodes.values():
        await node.take_command()
    contents = {"FI": released(99, 198, 40), "ES": released(107, 214, 60), "IT": released(None, None, None)}

    await let_out(world, nodes["FI"], job, contents["FI"])
    await world.upload("FI", job, contents["FI"])
    await world.upload("ES", job, contents["ES"])
    await let_out(world, nodes["ES"], job, contents["ES"])
    await let_out(world, nodes["IT"], job, contents["IT"])
    assert (await waits_for(world, job.job_id)).startswith(
        "2 of 3 answers; IT: the released summary is on its way since"
    )
    with pytest.raises(HansaError) as caught:
        await result(world, job.job_id)
    assert caught.value.reason is Reason.JOB_NOT_ENDED
    await world.upload("IT", job, contents["IT"])

    assert (await world.job(job.job_id)).state is JobState.COMPLETED
    found = await result(world, job.job_id)
    (row,) = found["variants"]
    assert row["variant"] == VARIANT
    assert row["countries"]["FI"]["ac"] == 40
    assert row["countries"]["IT"]["status"] == "suppressed"
    assert (row["pooled"]["ac"], row["pooled"]["an"], row["pooled"]["partial"]) == (100, 412, True)
    assert found["nodes"] == [
        {
            "node": node,
            "state": "RELEASED",
            "reason": "",
            "dataset": f"{node}-aisnp",
            "statement": digest((await world.statement(node, job, contents[node])).payload),
        }
        for node in NODES
    ]
    assert (found["state"], found["quorum"], found["parameters"]) == ("COMPLETED", 3, {"variants": VARIANT})


async def test_a_job_to_which_no_node_may_say_anything_is_withheld(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await world.submit()
    for name, node in nodes.items():
        await node.take_command()
        await let_out(world, node, job, released(None, None, None))
        await world.upload(name, job, released(None, None, None))
    found = await result(world, job.job_id)
    assert (found["state"], found["variants"]) == ("WITHHELD", [])


async def test_a_job_ends_at_once_when_its_quorum_is_out_of_reach_and_open_runs_are_cancelled(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await world.submit()
    for node in nodes.values():
        await node.take_command()
    await nodes["ES"].tell(report(run_at(job.job_id, "ES"), "DECLINED", reason="SUBMITTER_NOT_ADMITTED"))
    ended = await world.job(job.job_id)
    assert ended.state is JobState.DECLINED
    assert [run.state for run in ended.runs] == [RunState.CANCELLING, RunState.DECLINED, RunState.CANCELLING]
    assert (await nodes["FI"].take_command()).cancel.run_id == run_at(job.job_id, "FI")
    assert cancels(world, "ES") == []
    assert "ES: declined (SUBMITTER_NOT_ADMITTED)" in await waits_for(world, job.job_id)

    # The end of a run that was being cancelled is still told, the job stays.
    await nodes["FI"].tell(report(run_at(job.job_id, "FI"), "CANCELLED", reason="CANCELLED"))
    after = await world.job(job.job_id)
    assert (after.runs[0].state, after.state) == (RunState.CANCELLED, JobState.DECLINED)
    assert (await result(world, job.job_id))["state"] == "DECLINED"


async def test_a_cancelled_job_ends_when_its_nodes_have_confirmed_it(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await world.submit()
    for node in nodes.values():
        await node.take_command()
    assert (await cancel(world, job.job_id)).job.state is JobState.CANCELLING
    assert (await cancel(world, job.job_id, request_id="again")).job.state is JobState.CANCELLING
    for name, node in nodes.items():
        assert (await node.take_command()).cancel.run_id == run_at(job.job_id, name)
        await node.tell(report(run_at(job.job_id, name), "RUNNING"))
        assert (await world.job(job.job_id)).state is JobState.CANCELLING
        await node.tell(report(run_at(job.job_id, name), "CANCELLED"))
    assert (await world.job(job.job_id)).state is JobState.CANCELLED
    assert [len(cancels(world, name)) for name in NODES] == [1, 1, 1]
    assert (await cancel(world, job.job_id)).job.state is JobState.CANCELLED, "a repeat gets the first answer"
    with pytest.raises(HansaError) as caught:
        await cancel(world, job.job_id, request_id="later")
    assert caught.value.reason is Reason.JOB_ENDED


async def test_somebody_elses_job_is_answered_like_an_unknown_one(world: JobWorld) -> None:
    job = await world.submit()
    turn = world.desk.turn()
    for job_id in (job.job_id, "00000000-0000-0000-0000-000000000000", "../x"):
        for look in (view_job, job_result):
            with pytest.raises(HansaError) as caught:
                await world.desk.read(partial(look, job_id=job_id, asker=BOB, turn=turn))
            assert caught.value.reason is Reason.JOB_UNKNOWN
        with pytest.raises(HansaError) as caught:
            await cancel(world, job_id, BOB)
        assert caught.value.reason is Reason.JOB_UNKNOWN
    seen: JobView = await world.desk.read(partial(view_job, job_id=job.job_id, asker=OPERATOR, turn=turn))
    assert seen.job.job_id == job.job_id


async def test_lists_are_paged_newest_first_and_show_only_the_askers_own(world: JobWorld) -> None:
    mine = []
    for number in range(5):
        # Two of one moment: the order must not depend on time alone.
        world.clock.advance(timedelta(seconds=number % 2))
        mine.append((await world.submit()).job_id)
    theirs = (await world.submit(world.signed(signer="bob", submitter="bob"), caller="bob")).job_id
    turn = world.desk.turn()

    async def walk(asker: Asker) -> list[str]:
        found, after = [], ""
        while True:
            page = Page(2, after)
            listed = await world.desk.read(partial(list_jobs, page=page, asker=asker, turn=turn))
            found += [view.job.job_id for view in listed.items]
            after = listed.last
            if not after:
                return found

    assert sorted(await walk(ADA)) == sorted(mine)
    assert sorted(await walk(OPERATOR)) == sorted([*mine, theirs])
    assert await walk(BOB) == [theirs]
    with pytest.raises(HansaError) as caught:
        await world.desk.read(partial(list_jobs, page=Page(2, mine[0]), asker=BOB, turn=turn))
    assert caught.value.reason is Reason.MALFORMED


async def test_a_watch_tells_the_job_at_once_and_after_each_change_until_its_end(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await world.submit(datasets=world.spec()["datasets"][:1], quorum=1)
    await nodes["FI"].take_command()
    seen: asyncio.Queue[JobView] = asyncio.Queue()

    async def watch() -> None:
        async for view in watch_job(world.desk, job.job_id, ADA):
            await seen.put(view)

    watcher = asyncio.create_task(watch())
    async with asyncio.timeout(20):
        assert (await seen.get()).job.runs[0].state is RunState.OFFERED
        await nodes["FI"].tell(report(run_at(job.job_id, "FI"), "AWAITING_RELEASE"))
        assert (await seen.get()).waits_for.startswith("0 of 1 answers; FI: waits for an output checker since ")
        await nodes["FI"].tell(report(run_at(job.job_id, "FI"), "WITHHELD", reason="WITHHELD"))
        assert (await seen.get()).job.state is JobState.WITHHELD
        await watcher
    assert seen.empty()


async def test_the_deadline_ends_a_job_and_expires_what_is_open(world: JobWorld, nodes: dict[str, PlainNode]) -> None:
    job = await world.submit(quorum=1)
    for node in nodes.values():
        await node.take_command()
    await let_out(world, nodes["FI"], job, released())
    await world.upload("FI", job, released())
    assert (await world.job(job.job_id)).state is JobState.PENDING, "reachable nodes are waited for"
    world.clock.advance(timedelta(minutes=30))
    await world.desk.commit(lambda s: (None, settle(s, job.job_id, world.desk.turn())))
    ended = await world.job(job.job_id)
    assert ended.state is JobState.COMPLETED
    assert [(run.state, run.reason) for run in ended.runs[1:]] == [(RunState.EXPIRED, "DEADLINE_PASSED")] * 2
    assert (await nodes["ES"].take_command()).cancel.run_id == run_at(job.job_id, "ES")
    # Late reports change neither the run nor the job.
    await let_out(world, nodes["ES"], job, released())
    await world.upload("ES", job, released())
    assert await world.job(job.job_id) == await world.job(job.job_id)
    assert (await world.job(job.job_id)).runs[1].state is RunState.EXPIRED
    assert (await result(world, job.job_id))["nodes"][1]["state"] == "EXPIRED"


async def test_a_job_with_its_quorum_does_not_wait_for_a_node_that_stays_away(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    job = await world.submit(quorum=2)
    for node in nodes.values():
        await node.take_command()
    for name in ("FI", "ES"):
        await let_out(world, nodes[name], job, released())
        await world.upload(name, job, released())
    await nodes["IT"].hang_up()
    before = world.clock()
    await world.desk.commit(lambda s: (None, settle(s, job.job_id, world.desk.turn())))
    assert (await world.job(job.job_id)).state is JobState.PENDING, "a short absence changes nothing"
    assert world.database.run_sync(partial(next_due, now=before)) == before + SESSION_SILENCE

    world.clock.advance(SESSION_SILENCE)
    words = await waits_for(world, job.job_id)
    assert words.startswith("2 of 2 answers; IT: unreachable since 20")
    assert "; last state OFFERED since 20" in words
    assert world.database.run_sync(partial(due_jobs, since=before, now=world.clock())) == [job.job_id]
    await world.desk.commit(lambda s: (None, settle(s, job.job_id, world.desk.turn())))
    assert (await world.job(job.job_id)).state is JobState.COMPLETED


async def test_the_clock_loop_ends_overdue_jobs_by_itself(world: JobWorld) -> None:
    overdue = await world.submit()
    world.clock.advance(timedelta(hours=1))
    loop = asyncio.create_task(keep_deadlines(world.desk))
    try:
        async with asyncio.timeout(20):
            views = [view async for view in watch_job(world.desk, overdue.job_id, ADA)]
            assert views[-1].job.state is JobState.EXPIRED
            # A job that comes while the loop sleeps has it look again in time.
            soon = (world.clock() + timedelta(milliseconds=50)).isoformat()
            hurried = await world.submit(not_after=soon)
            world.clock.advance(timedelta(seconds=1))
            views = [view async for view in watch_job(world.desk, hurried.job_id, ADA)]
            assert views[-1].job.state is JobState.EXPIRED
    finally:
        loop.cancel()
        await asyncio.wait([loop])


def test_the_clock_loop_sleeps_precisely_never_busily_and_never_past_a_clock_that_is_set() -> None:
    assert pause(START + timedelta(seconds=3), START) == timedelta(seconds=3)
    assert pause(START, START) == timedelta(seconds=1)
    assert pause(None, START) == pause(START + timedelta(days=9), START) == timedelta(seconds=5)


async def test_an_upload_is_stored_once_and_only_as_announced(world: JobWorld, nodes: dict[str, PlainNode]) -> None:
    job = await world.submit()
    await nodes["FI"].take_command()
    content = released(ac=41)
    await nodes["FI"].tell(release(await world.statement("FI", job, content), content))

    async def refused(node: str, content: bytes, **more: int) -> Reason:
        with pytest.raises(HansaError) as caught:
            await world.upload(node, job, content, **more)
        return caught.value.reason

    assert await refused("SE", released(ac=41)) is Reason.RUN_UNKNOWN
    assert await refused("FI", released(ac=41), attempt=2) is Reason.PROTOCOL_VIOLATION
    await world.upload("FI", job, released(ac=41))
    await world.upload("FI", job, released(ac=41))
    assert await refused("FI", released(ac=42)) is Reason.SUMMARY_CONFLICT


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"not json",
        released().replace(b'"ac"', b'"carriers"'),
        released().replace(b'"merge": "sum"', b'"merge": "max"'),
        released().replace(b"[40]", b'["HG00096"]'),
        released().replace(b"[40]", b"[4.5]"),
    ],
)
async def test_a_summary_that_departs_from_its_schema_is_refused(world: JobWorld, content: bytes) -> None:
    job = await world.submit()
    with pytest.raises(HansaError) as caught:
        await world.upload("FI", job, content)
    assert caught.value.reason is Reason.SUMMARY_CORRUPT
    assert not (await world.job(job.job_id)).runs[0].stored


async def test_summaries_that_cannot_be_combined_fail_the_job_and_nothing_else(
    world: JobWorld, nodes: dict[str, PlainNode]
) -> None:
    other = {**MANIFEST, "name": "other", "one_of": [], "summary": {"axes": {}, "arrays": {"n": COUNT}}}
    files = {"manifest.json": json.dumps(other).encode(), "Snakefile": b""}
    world.trust.bundles.append(world.trust.vote(world.trust.bundle(files), "rev1", "rev2"))
    (project,) = world.trust.directory.projects
    world.trust.change(projects=(project.model_copy(update={"analyses": ("other@1.0",)}),))
    await world.publish()
    for node in nodes.values():
        assert (await node.take_command()).HasField("trust_update")
    job = await world.submit(
        analysis={"name": "other", "version": "1.0", "digest": bundle_digest(files)}, parameters={}
    )
    content = json.dumps(
        {"v": 1, "axes": {}, "notes": {}, "arrays": {"n": {**COUNT, "values": [7]}}}  # no allele counts in it
    ).replace(', "released": true', "")
    for name, node in nodes.items():
        await node.take_command()
        await let_out(world, node, job, content.encode())
        await world.upload(name, job, content.encode())
    assert (await world.job(job.job_id)).state is JobState.FAILED
    found = await result(world, job.job_id)
    assert (found["state"], found["variants"]) == ("FAILED", [])


async def test_those_who_wait_are_told_even_where_the_caller_is_gone(world: JobWorld) -> None:
    signed, turn = world.signed(), world.desk.turn()
    with world.desk.bells.of_node("FI") as bell:
        work = partial(submit_job, signed=signed, caller="ada", turn=turn)
        submission = asyncio.create_task(world.desk.commit(work))
        await asyncio.sleep(0)  # it has begun
        submission.cancel()
        async with asyncio.timeout(20):
            await bell.wait()
    assert submission.cancelled()
    assert world.database.run_sync(lambda s: CommandRepository(s).head("FI")).seq == 1


async def test_many_submissions_and_reports_at_once_lose_nothing(world: JobWorld, nodes: dict[str, PlainNode]) -> None:
    jobs = await asyncio.gather(*(world.submit() for _ in range(8)))

    async def work(name: str, node: PlainNode) -> None:
        for run in [(await node.take_command()).offer.run_id for _ in jobs]:
            await node.tell(report(run, "ACCEPTED"), report(run, "RUNNING"))
        for job in jobs:
            await let_out(world, node, job, released())
            await world.upload(name, job, released())

    await asyncio.gather(*(work(name, node) for name, node in nodes.items()))
    for job in jobs:
        assert (await world.job(job.job_id)).state is JobState.COMPLETED
