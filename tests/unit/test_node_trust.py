"""What a node believes: fetched, verified, put in force, and never again something older."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from hansa.contract.digests import bundle_digest
from hansa.contract.errors import HansaError, Reason
from hansa.trust.files import FilesSource, RepositoryFiles
from node_agent.audit.trail import AuditTrail
from node_agent.catalogue import is_sound
from node_agent.config import PINNED_ROOT, create_state_folder
from node_agent.executions import Finish, Outcome
from tests.support.agent import BUNDLE, DIGEST, START, Bench, collected, job, make_world, offer, open_bench

KEY = "allele-frequency@1.0"


@dataclass
class Mirror:
    """A coordinator's mirror as the test wants it; ``asked`` says what was fetched."""

    files: RepositoryFiles
    away: bool = False
    asked: list[str] = field(default_factory=list)

    def metadata(self, role: str, version: int, most_bytes: int) -> bytes:
        self.asked.append(role)
        if self.away:
            raise HansaError(Reason.COORDINATOR_UNREACHABLE)
        return FilesSource(self.files).metadata(role, version, most_bytes)

    def target(self, path: str, sha256: str, most_bytes: int) -> bytes:
        self.asked.append(path)
        return FilesSource(self.files).target(path, sha256, most_bytes)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A node that has pinned its root and fetched nothing."""
    made = fresh(tmp_path)
    yield made
    made.database.close()


def fresh(folder: Path, bench: Bench | None = None) -> Bench:
    """Return a new node below ``folder``, or an old one after a restart."""
    world = bench.world if bench else make_world(folder / "analysis")
    state = create_state_folder(folder / "state")
    (state.trust / PINNED_ROOT).write_bytes(world.root)
    made = open_bench(state, world, trusted=False)
    made.keeper.source = Mirror(world.files)
    return made


def mirror(bench: Bench) -> Mirror:
    assert isinstance(bench.keeper.source, Mirror)
    return bench.keeper.source


async def actions(bench: Bench) -> list[tuple[str, dict[str, Any]]]:
    found = await AuditTrail(database=bench.database).entries(after=None, limit=100)
    return [(entry["action"], entry["facts"]) for entry in found["entries"]]


async def publish(bench: Bench, **changes: Any) -> None:
    bench.world.change(**changes)
    mirror(bench).files = bench.world.files
    await bench.keeper.refresh()


async def test_before_anything_is_verified_no_job_is_taken(bench: Bench) -> None:
    run = await bench.offer(offer(job()))
    assert (run.state, run.reason) == ("DECLINED", "DIRECTORY_BEHIND")


async def test_a_refresh_puts_directory_and_analyses_in_force_and_writes_it_down(bench: Bench) -> None:
    await bench.keeper.refresh()
    assert (bench.trust.directory_version, list(bench.catalogue)) == (1, [KEY])
    assert bench.catalogue[KEY].digest == DIGEST
    assert (await bench.offer(offer(job()))).state == "QUEUED"
    assert (await actions(bench))[0] == ("trust_in_force", {"directory": 1, "targets": 1, "root": 1})
    standing = bench.trust.standing()
    assert (standing["directory_version"], standing["fault"]) == (1, "")


async def test_what_is_in_force_is_there_again_after_a_restart_without_any_contact(
    bench: Bench, tmp_path: Path
) -> None:
    await bench.keeper.refresh()
    bench.database.close()
    again = fresh(tmp_path, bench)
    mirror(again).away = True
    try:
        await again.keeper.load()
        assert (again.trust.directory_version, list(again.catalogue), mirror(again).asked) == (1, [KEY], [])
        assert (await actions(again))[-1][0] == "trust_in_force"
        assert len(await actions(again)) == 1
    finally:
        again.database.close()


async def test_expired_metadata_are_remembered_over_a_restart_and_admit_nothing_new(
    bench: Bench, tmp_path: Path
) -> None:
    await bench.keeper.refresh()
    run = await bench.running(job(deadline=timedelta(days=9)))
    bench.database.close()
    again = fresh(tmp_path, bench)
    mirror(again).away = True
    again.now = START + timedelta(days=2)
    try:
        await again.keeper.load()
        assert again.trust.directory_version == 1
        late = await again.offer(offer(job(not_before=again.now, not_after=again.now + timedelta(days=1))))
        assert late.reason == "TRUST_EXPIRED"
        summary = Finish(run_id=run.run_id, execution=1, outcome=Outcome.SUMMARY, summary=collected())
        await again.executions.finish(summary)
        assert (await again.run(run.run_id)).state == "RELEASED"
    finally:
        again.database.close()


async def test_a_coordinator_that_answers_slowly_does_not_use_up_the_agents_threads(bench: Bench) -> None:
    asked, answer = threading.Event(), threading.Event()

    class Slow(Mirror):
        def metadata(self, role: str, version: int, most_bytes: int) -> bytes:
            asked.set()
            answer.wait(60)
            return super().metadata(role, version, most_bytes)

    bench.keeper.source = Slow(bench.world.files)
    try:
        for _ in range(40):
            with suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await bench.keeper.refresh()
        async with asyncio.timeout(20):
            assert await asyncio.to_thread(asked.wait, 10)
    finally:
        answer.set()
    await bench.keeper.refresh()
    assert bench.trust.directory_version == 1


async def test_a_bundle_of_another_digest_under_the_jobs_name_is_not_run(bench: Bench, tmp_path: Path) -> None:
    """It may have come into force between a claim's look at the catalogue and its transaction."""
    await bench.keeper.refresh()
    run = await bench.offer(offer(job()))
    await bench.step()
    files = {**BUNDLE, "Snakefile": b"rule all:\n    shell: 'id'\n"}
    for name, content in files.items():
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).write_bytes(content)
    other = replace(bench.catalogue[KEY], digest=bundle_digest(files), folder=tmp_path / "other")
    assert is_sound(other)
    with pytest.raises(HansaError):
        await replace(bench.executions, analyses={KEY: other}).claim(run.run_id, "worker")
    assert (await bench.run(run.run_id)).reason == "STAGING_FAILED"


async def test_an_execution_is_not_begun_on_expired_metadata(bench: Bench) -> None:
    await bench.keeper.refresh()
    run = await bench.offer(offer(job(deadline=timedelta(days=9))))
    bench.now = START + timedelta(days=2)
    await bench.step()
    with pytest.raises(HansaError):
        await bench.executions.claim(run.run_id, "worker")
    ended = await bench.run(run.run_id)
    assert (ended.state, ended.reason) == ("FAILED", "TRUST_EXPIRED")


async def test_a_newer_directory_is_put_in_force_and_jobs_of_the_older_are_turned_away(bench: Bench) -> None:
    await bench.keeper.refresh()
    await publish(bench, witnesses=())
    assert bench.trust.directory_version == 2
    assert (await bench.offer(offer(job()))).reason == "DIRECTORY_ROLLBACK"
    assert (await bench.offer(offer(job(directory_version=2)))).state == "QUEUED"


async def test_an_offer_of_a_newer_directory_has_the_node_look_for_it_and_no_other_does(bench: Bench) -> None:
    await bench.keeper.refresh()
    mirror(bench).asked.clear()
    await bench.keeper.reach(1)
    assert mirror(bench).asked == []
    bench.world.change(witnesses=())
    mirror(bench).files = bench.world.files
    await bench.keeper.reach(2)
    assert bench.trust.directory_version == 2
    await bench.keeper.reach(9)
    assert (await bench.offer(offer(job(directory_version=9)))).reason == "DIRECTORY_BEHIND"


async def test_a_mirror_that_is_away_takes_nothing_away(bench: Bench) -> None:
    await bench.keeper.refresh()
    mirror(bench).away = True
    with structlog.testing.capture_logs() as logs:
        await bench.keeper.refresh()
    assert [line["reason"] for line in logs if line["event"] == "trust_not_refreshed"] == ["COORDINATOR_UNREACHABLE"]
    assert (bench.trust.directory_version, bench.trust.fault) == (1, "COORDINATOR_UNREACHABLE")
    assert (await bench.offer(offer(job()))).state == "QUEUED"
    mirror(bench).away = False
    await bench.keeper.refresh()
    assert bench.trust.fault == ""


def _older(bench: Bench, before: RepositoryFiles) -> RepositoryFiles:
    return before


def _timestamp_of_before(bench: Bench, before: RepositoryFiles) -> RepositoryFiles:
    name = "timestamp.json"
    return RepositoryFiles({**bench.world.files.metadata, name: before.metadata[name]}, bench.world.files.targets)


def _other_directory(bench: Bench, before: RepositoryFiles) -> RepositoryFiles:
    files = bench.world.files
    return RepositoryFiles(files.metadata, dict.fromkeys(files.targets, b"{}"))


def _too_few_signatures(bench: Bench, before: RepositoryFiles) -> RepositoryFiles:
    bench.world.signers = {**bench.world.signers, "targets": ("targets1",)}
    bench.world.change(witnesses=())
    return bench.world.files


def _garbage(bench: Bench, before: RepositoryFiles) -> RepositoryFiles:
    return RepositoryFiles(dict.fromkeys(bench.world.files.metadata, b"\xff"), {})


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (_older, "TRUST_ROLLBACK"),
        (_timestamp_of_before, "TRUST_ROLLBACK"),
        (_too_few_signatures, "TRUST_THRESHOLD"),
        (_garbage, "TRUST_INVALID"),
    ],
)
async def test_metadata_that_do_not_hold_are_refused_written_down_once_and_change_nothing(
    bench: Bench, attack: Any, reason: str
) -> None:
    await bench.keeper.refresh()
    before = bench.world.files
    await publish(bench, issuers=())
    mirror(bench).files = attack(bench, before)
    await bench.keeper.refresh()
    await bench.keeper.refresh()
    assert (bench.trust.directory_version, bench.trust.fault) == (2, reason)
    told = [facts for action, facts in await actions(bench) if action == "trust_refused"]
    assert told == [{"reason": reason, "directory": 2}]


async def test_targets_that_are_not_what_was_signed_are_refused(bench: Bench) -> None:
    mirror(bench).files = _other_directory(bench, bench.world.files)
    await bench.keeper.refresh()
    assert (bench.trust.view, bench.trust.fault) == (None, "TRUST_INVALID")


async def test_a_federation_under_another_root_is_not_believed(bench: Bench, tmp_path: Path) -> None:
    mirror(bench).files = make_world(tmp_path / "other").files
    await bench.keeper.refresh()
    assert bench.trust.view is None
    assert bench.trust.fault.startswith("TRUST_")


async def test_a_directory_that_was_in_force_stays_out_once_it_was_replaced_though_the_folder_is_lost(
    bench: Bench, tmp_path: Path
) -> None:
    await bench.keeper.refresh()
    old = bench.world.files
    await publish(bench, witnesses=())
    bench.database.close()
    shutil.rmtree(bench.state.trust)
    bench.state.trust.mkdir()
    again = fresh(tmp_path, bench)
    mirror(again).files = old
    try:
        await again.keeper.refresh()
        assert (again.trust.view, again.trust.fault) == (None, "TRUST_ROLLBACK")
        mirror(again).files = again.world.files
        await again.keeper.refresh()
        assert again.trust.directory_version == 2
    finally:
        again.database.close()


async def test_a_node_without_a_pinned_root_believes_nothing(bench: Bench) -> None:
    (bench.state.trust / PINNED_ROOT).unlink()
    await bench.keeper.refresh()
    assert (bench.trust.view, bench.trust.fault) == (None, "TRUST_UNKNOWN")


@pytest.mark.parametrize("when", ["before it starts", "while it runs"])
async def test_an_analysis_that_is_voted_down_is_not_begun_and_what_ran_of_it_is_not_released(
    bench: Bench, when: str
) -> None:
    await bench.keeper.refresh()
    run = await bench.offer(offer(job()))
    await bench.step()
    if when == "while it runs":
        await bench.executions.claim(run.run_id, "worker")
    bench.world.bundles = [bench.world.vote(bench.world.bundles[0], "rev3", verdict="reject")]
    await publish(bench)
    if when == "while it runs":
        assert await bench.executions.beat(run.run_id, 1)
        summary = Finish(run_id=run.run_id, execution=1, outcome=Outcome.SUMMARY, summary=collected())
        await bench.executions.finish(summary)
    else:
        with pytest.raises(HansaError):
            await bench.executions.claim(run.run_id, "worker")
    ended = await bench.run(run.run_id)
    assert (ended.state, ended.reason) == ("FAILED", "ANALYSIS_NOT_ADMITTED")
    assert (await bench.offer(offer(job(directory_version=2)))).reason == "ANALYSIS_NOT_ADMITTED"


async def test_a_person_who_left_the_directory_stops_their_running_job(bench: Bench) -> None:
    await bench.keeper.refresh()
    run = await bench.running(job())
    people = tuple(person for person in bench.world.directory.people if person.name != "ada")
    await publish(bench, people=people)
    assert await bench.executions.beat(run.run_id, 1)
    summary = Finish(run_id=run.run_id, execution=1, outcome=Outcome.SUMMARY, summary=collected())
    await bench.executions.finish(summary)
    ended = await bench.run(run.run_id)
    assert (ended.state, ended.reason) == ("FAILED", "SUBMITTER_NOT_ADMITTED")


async def test_a_bundle_that_was_changed_on_the_disk_is_not_run(bench: Bench) -> None:
    await bench.keeper.refresh()
    run = await bench.offer(offer(job()))
    await bench.step()
    snakefile = bench.catalogue[KEY].folder / "Snakefile"
    snakefile.chmod(0o600)
    snakefile.write_bytes(b"shell('id')")
    with pytest.raises(HansaError):
        await bench.executions.claim(run.run_id, "worker")
    ended = await bench.run(run.run_id)
    assert (ended.state, ended.reason) == ("FAILED", "STAGING_FAILED")


async def test_a_coordinator_whose_log_forked_gets_nothing_more(bench: Bench) -> None:
    await bench.keeper.refresh()
    run = await bench.running(job())
    bench.alarmed = True
    assert (await bench.offer(offer(job()))).reason == "LOG_FORKED"
    summary = Finish(run_id=run.run_id, execution=1, outcome=Outcome.SUMMARY, summary=collected())
    await bench.executions.finish(summary)
    assert (await bench.run(run.run_id)).reason == "LOG_FORKED"
