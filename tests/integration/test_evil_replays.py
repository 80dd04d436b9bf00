"""T-C2: what was once allowed is allowed once. Replays, other orders, other names, old trust, against a whole node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete
from sqlalchemy.orm import Session

from hansa.contract.envelope import to_json
from hansa.contract.ids import run_id
from hansa.contract.states import RunState
from hansa.v1 import node_service_pb2 as wire
from node_agent.store.models import RunRow, SummaryRow
from tests.support.besieged_node import Outcome
from tests.support.siege import NODE, Siege, message_of, siege

pytestmark = pytest.mark.slow

TRUST_UPDATE = wire.CommandBody(trust_update=wire.TrustUpdate())


@pytest.fixture
async def laid_out(tmp_path: Path) -> AsyncIterator[Siege]:
    """A node that is not started yet."""
    async with siege(tmp_path) as found:
        yield found
        await found.node.assert_unbroken()


@pytest.fixture
async def besieged(laid_out: Siege) -> AsyncIterator[Siege]:
    """A node at which honest jobs run."""
    async with laid_out.node.running():
        await laid_out.open()
        yield laid_out


async def outcome(besieged: Siege, act: Callable[[], Awaitable[object]]) -> Outcome:
    return await besieged.node.attempt("replay", act)


async def ran(besieged: Siege) -> wire.CommandBody:
    """Return the offer of an honest job that has run and is released."""
    body = besieged.honest()
    assert await outcome(besieged, lambda: besieged.evil.command(body)) is Outcome.HONEST
    return body


def changed(body: wire.CommandBody, **fields: object) -> wire.CommandBody:
    other = wire.CommandBody()
    other.CopyFrom(body)
    for name, value in fields.items():
        setattr(other.offer, name, value)
    return other


async def test_evil_an_offer_replayed_in_its_session_changes_nothing(besieged: Siege) -> None:
    body = await ran(besieged)

    for _ in range(3):
        assert await outcome(besieged, lambda: besieged.evil.command(body)) is Outcome.IGNORED


async def test_evil_a_command_frame_replayed_as_it_was_changes_nothing(besieged: Siege) -> None:
    evil = besieged.evil
    frame = evil.numbered(await evil.session(), besieged.honest())
    assert await outcome(besieged, lambda: evil.send(frame)) is Outcome.HONEST

    assert await outcome(besieged, lambda: evil.send(frame)) is Outcome.IGNORED


async def test_evil_an_offer_replayed_after_a_reconnect_changes_nothing(besieged: Siege) -> None:
    body = await ran(besieged)
    await besieged.evil.hang_up()

    assert await outcome(besieged, lambda: besieged.evil.command(body)) is Outcome.IGNORED


async def test_evil_an_offer_replayed_after_a_restart_of_the_agent_changes_nothing(laid_out: Siege) -> None:
    async with laid_out.node.running():
        await laid_out.open()
        body = await ran(laid_out)
    async with laid_out.node.running():
        assert await outcome(laid_out, lambda: laid_out.evil.command(body)) is Outcome.IGNORED
        # The agent is at work: an honest job still runs.
        await ran(laid_out)


async def test_evil_an_offer_replayed_after_its_run_was_forgotten_is_refused(besieged: Siege) -> None:
    """The ledger of jobs outlives the runs."""
    body = await ran(besieged)

    def forget(session: Session) -> None:
        session.execute(delete(SummaryRow).where(SummaryRow.run_id == body.offer.run_id))
        session.execute(delete(RunRow).where(RunRow.run_id == body.offer.run_id))

    await besieged.node.database.run(forget)

    assert await outcome(besieged, lambda: besieged.evil.command(body)) is Outcome.REFUSED
    assert besieged.node.reasons["JOB_REPLAYED"] == 1


async def test_evil_a_released_job_under_other_names_does_not_run_again(besieged: Siege) -> None:
    body = await ran(besieged)
    job = body.offer.job_id
    names = [
        {"attempt": 2},
        {"attempt": (1 << 32) - 1},
        {"attempt": 0},
        {"run_id": run_id(job, NODE, 2)},
        {"run_id": run_id(job, NODE, 2), "round": 2},
        {"run_id": run_id(job, "ES", 1)},
        {"run_id": "0" * 32, "round": 0},
        {"run_id": run_id(job, NODE, 0), "round": 0},
    ]
    for fields in names:
        found = await outcome(besieged, lambda fields=fields: besieged.evil.command(changed(body, **fields)))  # type: ignore[misc]
        assert found in {Outcome.IGNORED, Outcome.REFUSED}, fields


async def test_evil_a_job_runs_in_no_round_but_its_own(besieged: Siege) -> None:
    """Also the first time: a second round would be a second release."""
    body = besieged.honest()
    job = body.offer.job_id
    for number in (0, 2, 3, (1 << 32) - 1):
        other = changed(body, run_id=run_id(job, NODE, number), round=number)
        assert await outcome(besieged, lambda other=other: besieged.evil.command(other)) is Outcome.REFUSED  # type: ignore[misc]


async def test_evil_attempt_zero_is_no_attempt(besieged: Siege) -> None:
    """No release could be signed of it; it would be executed until the node gives it up."""
    body = changed(besieged.honest(), attempt=0)

    assert await outcome(besieged, lambda: besieged.evil.command(body)) is Outcome.REFUSED


async def test_evil_many_attempts_at_a_job_give_one_release(besieged: Siege) -> None:
    body = besieged.honest()
    for number in range(1, 6):
        await outcome(besieged, lambda number=number: besieged.evil.command(changed(body, attempt=number)))  # type: ignore[misc]

    assert besieged.node.outcomes[Outcome.HONEST] == 1
    assert [run.run_id for run in besieged.node.worker.executed].count(body.offer.run_id) == 1


async def test_evil_one_offer_many_times_at_once_gives_one_release(besieged: Siege) -> None:
    evil, body = besieged.evil, besieged.honest()

    async def flood() -> None:
        for _ in range(20):
            await evil.command(body)

    assert await outcome(besieged, flood) is Outcome.HONEST
    assert [run.run_id for run in besieged.node.worker.executed].count(body.offer.run_id) == 1


async def test_evil_commands_in_another_order_are_not_applied(besieged: Siege) -> None:
    evil = besieged.evil
    session = await evil.session()
    first = evil.numbered(session, besieged.honest())
    second = evil.numbered(session, besieged.honest())
    second.command.seq += 1
    second.command.prev_hash = evil.cursor.after(first.command.body).hash

    assert await outcome(besieged, lambda: evil.send(second)) is not Outcome.HONEST
    assert evil.cursor.seq + 1 == first.command.seq
    await ran(besieged)


async def test_evil_a_command_on_another_history_is_not_applied(besieged: Siege) -> None:
    evil = besieged.evil
    frame = evil.numbered(await evil.session(), besieged.honest())
    frame.command.prev_hash = b"\7" * 32

    assert await outcome(besieged, lambda: evil.send(frame)) is not Outcome.HONEST
    await ran(besieged)


async def test_evil_a_cancellation_before_its_offer_takes_nothing_away(besieged: Siege) -> None:
    body = besieged.honest()
    cancel = wire.CommandBody(cancel=wire.Cancel(run_id=body.offer.run_id, attempt=1))

    assert await outcome(besieged, lambda: besieged.evil.command(cancel)) is Outcome.IGNORED
    assert await outcome(besieged, lambda: besieged.evil.command(body)) is Outcome.HONEST


async def test_evil_an_approval_cannot_be_relayed(laid_out: Siege) -> None:
    """Not even a true one that leaked: a data holder's yes counts where it is said, at the node."""
    async with laid_out.node.running():
        evil, node = laid_out.evil, laid_out.node
        await evil.session()
        await node.until(lambda: node.trusted() == laid_out.world.directory.version)
        body = laid_out.honest()
        leaked = message_of(laid_out.approve(laid_out.yes_to(body)))
        standing = message_of(laid_out.approve(laid_out.standing()))

        for number, addenda in enumerate(([], [leaked], [standing], [leaked, standing]), start=1):
            other = changed(body, attempt=number)
            other.offer.addenda.extend(addenda)
            await outcome(laid_out, lambda other=other: evil.command(other))  # type: ignore[misc]
        for envelope in (leaked, standing):
            other = laid_out.honest()
            other.offer.job.CopyFrom(envelope)
            assert await outcome(laid_out, lambda other=other: evil.command(other)) is Outcome.REFUSED  # type: ignore[misc]
        assert node.worker.executed == []
        assert await state_of(laid_out, body) == RunState.AWAITING_APPROVAL

        # Said at the node, the same words count.
        approval = to_json(laid_out.approve(laid_out.yes_to(body)))
        assert await outcome(laid_out, lambda: node.local("approve", body.offer.run_id, approval)) is Outcome.HONEST


async def test_evil_the_whole_old_trust_is_not_put_in_force_again(besieged: Siege) -> None:
    """Who was taken out of the directory stays out, whatever the mirror says; also after a restart."""
    world, evil, node = besieged.world, besieged.evil, besieged.node
    old = evil.mirror.copy()
    spec = besieged.spec()
    world.change(people=tuple(person for person in world.directory.people if person.name != "ada"))
    besieged.mirror()
    await evil.command(TRUST_UPDATE)
    await node.until(lambda: node.trusted() == world.directory.version)

    evil.mirror = old
    begun = node.refreshes()
    await evil.command(TRUST_UPDATE)
    await node.until(lambda: node.refreshes() > begun)

    assert await outcome(besieged, lambda: evil.command(besieged.offer(spec))) is Outcome.REFUSED
    assert node.reasons["DIRECTORY_ROLLBACK"] == 1
    newer = besieged.spec()
    assert await outcome(besieged, lambda: evil.command(besieged.offer(newer))) is Outcome.REFUSED
    assert node.reasons["SUBMITTER_NOT_ADMITTED"] == 1


async def test_evil_trust_that_is_frozen_admits_no_more_jobs_after_a_day(besieged: Siege) -> None:
    besieged.node.clock.shift = timedelta(hours=25)
    now = besieged.node.clock()
    spec = besieged.spec(not_before=now, not_after=now + timedelta(minutes=30))

    assert await outcome(besieged, lambda: besieged.evil.command(besieged.offer(spec))) is Outcome.REFUSED
    assert besieged.node.reasons["TRUST_EXPIRED"] >= 1


async def test_evil_swapped_files_of_an_analysis_are_not_run(laid_out: Siege) -> None:
    """Each file of the repository has the content of another; a node that has none of them yet asks for them."""
    evil, node = laid_out.evil, laid_out.node
    targets = sorted(name for name in evil.mirror.files if name.startswith("targets/"))
    contents = [evil.mirror.files[name] for name in targets]
    evil.mirror.files.update(zip(targets, contents[1:] + contents[:1], strict=True))

    async with node.running():
        await evil.session()
        await node.until(lambda: node.refreshes() > 0)
        found = await outcome(laid_out, lambda: evil.command(laid_out.offer(laid_out.spec())))
        assert found is Outcome.REFUSED
        assert node.trusted() == 0
    assert node.worker.executed == []


async def test_evil_swapped_code_of_an_approved_analysis_is_not_run(laid_out: Siege) -> None:
    """The listing and the votes are the true ones; one file that they speak of is another."""
    evil, node, world = laid_out.evil, laid_out.node, laid_out.world
    (analysis,) = world.view.analyses.values()
    sha256 = analysis.files["Snakefile"]
    evil.mirror.files[f"targets/{sha256}"] = b"rule all:\n    shell: 'cp -r /data /out'\n".ljust(
        len(evil.mirror.files[f"targets/{sha256}"]), b" "
    )

    async with node.running():
        await evil.session()
        await node.until(lambda: node.refreshes() > 0)
        await outcome(laid_out, lambda: evil.command(laid_out.offer(laid_out.spec())))
    assert node.worker.executed == []
    assert not node.reasons.get("")


async def state_of(besieged: Siege, body: wire.CommandBody) -> RunState:
    run = await besieged.node.database.run(lambda session: session.get_one(RunRow, body.offer.run_id))
    return RunState(run.state)
