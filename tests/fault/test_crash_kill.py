"""Real processes are killed with SIGKILL at their commit points; each job ends with the right figures and proves itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.demo_data import prepare
from deploy.local.layout import REPOSITORY
from deploy.local.processes import sweep
from tests.support.crash_federation import ASKED, NODE, CrashFederation
from tests.support.crash_matrix import WRITES
from tests.support.crash_points import Phase
from tests.support.demo_oracle import truth

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_COMMIT = (Phase.UNCOMMITTED, Phase.COMMITTED)
_CALL = (Phase.BEFORE, Phase.COMMITTED)
_SESSIONS = "coordinator.services.sessions"

# Who dies, where; and whether only a start comes there.
POINTS = {
    "coordinator.services.submission.submit_job": ("coordinator", False),
    f"{_SESSIONS}.NodeSession._apply_batch": ("coordinator", False),
    f"{_SESSIONS}.NodeSession._exchange": ("coordinator", False),
    "coordinator.services.collection.collect": ("coordinator", False),
    f"{_SESSIONS}.Sessions.begin": ("coordinator", True),
    f"{_SESSIONS}.NodeSession._greet": ("coordinator", True),
    f"{_SESSIONS}.NodeSession._connect": ("coordinator", True),
    "coordinator.services.trust.keep_fresh.work": ("coordinator", True),
    "node_agent.link.session.Session._apply": ("agent", False),
    "node_agent.scheduling.Scheduler.step._start": ("agent", False),
    "node_agent.executions.Executions.claim.work": ("agent", False),
    "node_agent.executions.Executions.finish.work": ("agent", False),
    "node_agent.spool.uploader.Uploader._mark": ("agent", False),
    "node_agent.audit.witness.LogWitness.hear": ("agent", False),
    "node_agent.retention.Retention.purge._tidy": ("agent", True),
    "worker.claim": ("pool", False),
    "worker.sandbox": ("pool", False),
    "worker.finish": ("pool", False),
    "supervisor.start": ("worker", True),
}


@pytest.fixture(scope="module")
def data() -> Path:
    return prepare(REPOSITORY / ".cache")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[CrashFederation]:
    root = tmp_path_factory.mktemp("kill") / "hansa"
    try:
        found = CrashFederation.start(root, data)
        yield found
        found.stop()
    finally:
        # Also of one that did not come to stand, or did not stop.
        sweep(root)


@pytest.fixture(scope="module")
def expected(data: Path) -> tuple[int, int]:
    counts = truth(data / NODE / "aisnp.vcf.gz", data / NODE / "samples.tsv")[ASKED].everybody
    return counts.ac, counts.an


@pytest.fixture(scope="module")
def jobs() -> list[str]:
    """The jobs that have lived through a death."""
    return []


@pytest.mark.parametrize("point", POINTS)
def test_a_job_survives_a_kill_at_a_commit_point(
    federation: CrashFederation, expected: tuple[int, int], jobs: list[str], point: str
) -> None:
    kind, kick = POINTS[point]
    phases = _COMMIT if point in WRITES else _CALL
    federation.mend()
    outcome = asyncio.run(federation.survive(kind, point, phases, kick=kick))
    assert outcome.struck == list(phases)
    assert outcome.state == "COMPLETED"
    assert outcome.figures == expected
    jobs.append(outcome.job_id)


def test_every_job_that_lived_through_a_kill_proves_itself(federation: CrashFederation, jobs: list[str]) -> None:
    federation.mend()

    async def prove_all() -> list[bool]:
        return [await federation.proven(job_id) for job_id in jobs]

    proven = asyncio.run(prove_all())
    assert proven
    assert all(proven)
    log = federation.federation.at_node(NODE, "audit", "verify", "--output", "json")
    assert log.code == 0, log.out + log.err
