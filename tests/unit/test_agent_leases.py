"""The leases of running executions at the agent, on a real store: what ends one, and what a claim is worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from hansa.contract.errors import HansaError, Reason, RunReason
from hansa.v1 import node_service_pb2
from node_agent.executions import Finish, Outcome
from node_agent.leftovers import Leftovers
from node_agent.run_rules import BEAT_PATIENCE, MAX_EXECUTIONS, RunFacts, WorkerSign
from node_agent.store.models import RunRow
from node_agent.store.outbox import command_cursor
from tests.support.agent import Bench, collected, job, make_bench, offer

TOKEN, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    yield made
    made.database.close()


async def cancel(bench: Bench, run: RunRow) -> None:
    cursor = await bench.database.run(command_cursor)
    body = node_service_pb2.CommandBody(cancel=node_service_pb2.Cancel(run_id=run.run_id, attempt=1))
    command = node_service_pb2.Command(
        epoch=1, seq=cursor.seq + 1, prev_hash=cursor.hash, body=body.SerializeToString()
    )
    await bench.database.run(lambda session: bench.commands.apply(session, command, bench.now))


async def state(bench: Bench, run: RunRow) -> str:
    return (await bench.run(run.run_id)).state


async def test_the_run_of_a_dead_worker_is_sent_out_again_in_the_same_second(bench: Bench) -> None:
    run = await bench.running(job())
    bench.workers.of["worker-1"] = WorkerSign.DEAD
    await bench.step()
    again = await bench.run(run.run_id)
    assert (again.state, again.execution, again.worker) == ("STAGING", 2, "")
    assert bench.workers.cleared == [(run.run_id, 1)]
    assert bench.enqueued == [run.run_id] * 2


async def test_no_next_execution_starts_while_something_of_the_last_one_cannot_be_killed(bench: Bench) -> None:
    run = await bench.running(job())
    bench.workers.of["worker-1"] = WorkerSign.DEAD
    bench.workers.undying.add((run.run_id, 1))
    await bench.step()
    assert await state(bench, run) == "RUNNING"
    bench.workers.undying.clear()
    await bench.step()
    assert (await bench.run(run.run_id)).execution == 2


async def test_silence_alone_never_makes_a_cancelled_run_look_ended(bench: Bench) -> None:
    run = await bench.running(job(deadline=timedelta(hours=1)))
    bench.workers.of["worker-1"] = WorkerSign.ALIVE
    await cancel(bench, run)
    bench.now += BEAT_PATIENCE * 2
    await bench.step()
    # Frozen, say: what it had started is killed, but it could go on.
    assert await state(bench, run) == "CANCELLING"
    assert (run.run_id, 1) in bench.workers.cleared
    bench.workers.of["worker-1"] = WorkerSign.DEAD
    bench.workers.undying.add((run.run_id, 1))
    await bench.step()
    assert await state(bench, run) == "CANCELLING"
    bench.workers.undying.clear()
    await bench.step()
    assert await state(bench, run) == "CANCELLED"


async def test_a_restarted_agent_pardons_only_workers_that_still_live(bench: Bench) -> None:
    kept, lost = await bench.running(job()), await bench.running(job())
    bench.workers.of["worker-1"] = WorkerSign.ALIVE
    await bench.database.run(lambda session: setattr(session.get_one(RunRow, lost.run_id), "worker", "worker-2"))
    bench.workers.of["worker-2"] = WorkerSign.DEAD
    bench.now += BEAT_PATIENCE * 10
    await bench.scheduler._tick(None)
    assert (await bench.run(kept.run_id)).execution == 1
    assert (await bench.run(lost.run_id)).execution == 2


async def test_a_claim_whose_answer_was_lost_gets_the_same_answer_again(bench: Bench) -> None:
    run = await bench.offer(offer(job()))
    await bench.step()
    first = await bench.executions.claim(run.run_id, "worker-1", TOKEN)
    events = await bench.events()
    assert await bench.executions.claim(run.run_id, "worker-1", TOKEN) == first
    assert await bench.events() == events
    await bench.executions.finish(Finish(run_id=run.run_id, execution=1, outcome=Outcome.SUMMARY, summary=collected()))
    assert await state(bench, run) == "RELEASED"


@pytest.mark.parametrize(("worker", "token"), [("worker-1", OTHER), ("worker-2", TOKEN), ("worker-1", "")])
async def test_another_delivery_of_the_message_does_not_get_the_run_a_second_time(
    bench: Bench, worker: str, token: str
) -> None:
    run = await bench.offer(offer(job()))
    await bench.step()
    await bench.executions.claim(run.run_id, "worker-1", TOKEN)
    with pytest.raises(HansaError) as refused:
        await bench.executions.claim(run.run_id, worker, token)
    assert refused.value.reason is Reason.EXECUTION_SUPERSEDED


async def test_a_claim_of_an_execution_before_is_worth_nothing(bench: Bench) -> None:
    run = await bench.offer(offer(job()))
    await bench.step()
    await bench.executions.claim(run.run_id, "worker-1", TOKEN)
    bench.workers.of["worker-1"] = WorkerSign.DEAD
    await bench.step()
    await bench.executions.claim(run.run_id, "worker-2", OTHER)
    with pytest.raises(HansaError):
        await bench.executions.claim(run.run_id, "worker-1", TOKEN)


def lost(execution: int, run: RunRow) -> Finish:
    return Finish(
        run_id=run.run_id,
        execution=execution,
        outcome=Outcome.LOST,
        reason=RunReason.SANDBOX_FAILED,
        incident="00C0FFEE",
    )


async def test_an_execution_that_was_lost_through_no_fault_of_the_analysis_is_followed_by_the_next(
    bench: Bench,
) -> None:
    run = await bench.running(job())
    for execution in range(1, MAX_EXECUTIONS):
        await bench.executions.finish(lost(execution, run))
        waiting = await bench.run(run.run_id)
        assert (waiting.state, waiting.reason, waiting.incident) == ("QUEUED", "", "")
        await bench.step()
        await bench.executions.claim(run.run_id, "worker-1")
    await bench.executions.finish(lost(MAX_EXECUTIONS, run))
    ended = await bench.run(run.run_id)
    assert (ended.state, ended.reason, ended.incident) == ("FAILED", "SANDBOX_FAILED", "00C0FFEE")


async def test_as_long_as_the_broker_holds_the_messages_none_is_sent_again_and_once_it_does_not_all_are(
    bench: Bench,
) -> None:
    runs = [(await bench.offer(offer(job(deadline=timedelta(hours=1))))).run_id for _ in range(2)]
    await bench.step()
    bench.depth = 2
    bench.now += timedelta(minutes=10)
    await bench.step()
    assert sorted(bench.enqueued) == sorted(runs)
    bench.depth = 0
    await bench.step()
    assert sorted(bench.enqueued[2:]) == sorted(runs)


async def test_a_project_that_floods_the_node_does_not_make_another_one_wait_behind_its_queue(bench: Bench) -> None:
    flood = [await bench.offer(offer(job())) for _ in range(8)]
    await bench.step()
    other = await bench.offer(offer(job()))
    await bench.database.run(lambda session: setattr(session.get_one(RunRow, other.run_id), "project", "other"))
    first = bench.enqueued[0]
    assert first in {run.run_id for run in flood}
    await bench.executions.claim(first, "worker-1")
    await bench.executions.finish(Finish(run_id=first, execution=1, outcome=Outcome.FAILED))
    await bench.step()
    assert bench.enqueued[2:] == [other.run_id]


class _Host:
    """A host on which control groups stand."""

    def __init__(self) -> None:
        self.groups: set[tuple[str, int]] = set()
        self.killed: list[tuple[str, int]] = []
        self.needed: list[str] = []

    def executions(self) -> list[tuple[str, int]]:
        return sorted(self.groups)

    def clear_execution(self, run_id: str, execution: int) -> bool:
        self.killed.append((run_id, execution))
        self.groups.discard((run_id, execution))
        return True

    def forget(self, needed: Sequence[RunFacts]) -> None:
        self.needed = [run.run_id for run in needed]


async def test_what_runs_on_the_host_and_is_no_execution_any_more_is_killed_and_nothing_else(bench: Bench) -> None:
    run = await bench.running(job())
    host = _Host()
    host.groups = {(run.run_id, 1), (run.run_id, 7), ("f" * 32, 1)}
    leftovers = Leftovers(database=bench.database, premises=host)
    await leftovers.step()
    # A living worker may be about to end it itself.
    assert host.killed == []
    await leftovers.step()
    assert host.killed == [(run.run_id, 7), ("f" * 32, 1)]
    assert host.groups == {(run.run_id, 1)}
    assert host.needed == [run.run_id]
