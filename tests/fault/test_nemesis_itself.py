"""The checker is checked: honest evidence passes, and each planted violation is found by the check it breaks."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hansa.contract.outbox import Head
from hansa.v1 import node_service_pb2, types_pb2
from tests.support.demo_oracle import Counts, Truth
from tests.support.nemesis_check import (
    CHECKS,
    CoordinatorStore,
    Evidence,
    NodeRun,
    NodeStore,
    NodeSummary,
    SeenJob,
    Stored,
    verdicts,
)
from tests.support.nemesis_evidence import canaries, wrong_figures
from tests.support.nemesis_federation import NODES
from tests.support.nemesis_report import Report, spread

_NODE, _JOB, _RUN = "FI", "job-1", "ab" * 16
_CANARY, _SECRET = b"HG00171", b"MC4CAQAwBQYDK2VwBCIEIsecretsecret"
_WAY = ("ACCEPTED", "QUEUED", "STAGING", "RUNNING", "CHECKING", "RELEASED")


def _chain(bodies: list[bytes]) -> list[Stored]:
    head, found = Head(), []
    for body in bodies:
        head = head.after(body)
        found.append(Stored(head.seq, head.hash, body))
    return found


def _reported(state: str) -> bytes:
    reported = node_service_pb2.RunReported(run_id=_RUN, state=types_pb2.Run.State.Value(state))
    return node_service_pb2.EventBody(run_reported=reported).SerializeToString()


def _released() -> bytes:
    return node_service_pb2.EventBody(
        summary_released=node_service_pb2.SummaryReleased(run_id=_RUN)
    ).SerializeToString()


def _log() -> list[tuple[str, dict[str, Any]]]:
    return [
        ("offer_accepted", {"run": _RUN}),
        ("execution_started", {"run": _RUN, "execution": 1}),
        ("execution_started", {"run": _RUN, "execution": 2}),
        ("release_decided", {"run": _RUN, "execution": 2}),
        ("summary_released", {"run": _RUN, "execution": 2}),
    ]


def honest() -> Evidence:
    """One job at one node, whose second execution was released."""
    events, commands = _chain([*map(_reported, _WAY), _released()]), _chain([b"offer"])
    node = NodeStore(
        events=events,
        command_cursor=Head(commands[-1].seq, commands[-1].hash),
        runs={_RUN: NodeRun(_JOB, 2, "RELEASED")},
        summaries={_RUN: NodeSummary(2, "RELEASE", b"{}", uploaded=True)},
        log=list(_log()),
    )
    central = CoordinatorStore(
        jobs={_JOB: "COMPLETED"},
        runs={_RUN: "RELEASED"},
        events={_NODE: list(events)},
        commands={_NODE: commands},
        cursors={_NODE: Head(events[-1].seq, events[-1].hash)},
        node_states={_NODE: "ACTIVE"},
        summaries={_RUN: b"{}"},
        statements={_RUN},
    )
    return Evidence(
        nodes={_NODE: node},
        coordinator=central,
        jobs={_JOB: SeenJob(accepted=True, state="COMPLETED", took=3.0, most=300.0, seen={_RUN: list(_WAY)})},
        places={"the coordinator's coordinator.db": b"counts"},
        canaries=[_CANARY],
        secrets=[_SECRET],
        logs={"agent FI": b"agent_started"},
    )


def _lose_the_job(evidence: Evidence) -> None:
    del evidence.coordinator.jobs[_JOB]


def _leave_the_job_open(evidence: Evidence) -> None:
    evidence.coordinator.jobs[_JOB] = "PENDING"


def _end_it_too_late(evidence: Evidence) -> None:
    evidence.jobs[_JOB].took = 301.0


def _never_end_it(evidence: Evidence) -> None:
    evidence.jobs[_JOB].took = None


def _invent_a_job(evidence: Evidence) -> None:
    evidence.coordinator.jobs["job-2"] = "COMPLETED"


def _leave_the_run_open(evidence: Evidence) -> None:
    evidence.nodes[_NODE].runs[_RUN].state = "CHECKING"


def _say_something_else(evidence: Evidence) -> None:
    evidence.coordinator.runs[_RUN] = "CANCELLED"


def _release_twice(evidence: Evidence) -> None:
    evidence.nodes[_NODE].log.append(_log()[-1])


def _tell_a_release_twice(evidence: Evidence) -> None:
    bodies = [entry.body for entry in evidence.nodes[_NODE].events]
    _rewrite(evidence, [*bodies, _released()])


def _rewrite(evidence: Evidence, bodies: list[bytes]) -> None:
    events = _chain(bodies)
    evidence.nodes[_NODE].events, evidence.coordinator.events[_NODE] = events, list(events)
    evidence.coordinator.cursors[_NODE] = Head(events[-1].seq, events[-1].hash)


def _change_the_summary(evidence: Evidence) -> None:
    evidence.coordinator.summaries[_RUN] = b'{"ac": 1}'


def _lose_the_summary(evidence: Evidence) -> None:
    evidence.coordinator.summaries.clear()


def _make_a_summary_up(evidence: Evidence) -> None:
    evidence.coordinator.summaries["cd" * 16] = b"{}"


def _release_without_approval(evidence: Evidence) -> None:
    del evidence.nodes[_NODE].log[0]


def _decide_after_the_release(evidence: Evidence) -> None:
    log = evidence.nodes[_NODE].log
    log[3], log[4] = log[4], log[3]


def _commit_the_first_execution(evidence: Evidence) -> None:
    evidence.nodes[_NODE].summaries[_RUN].execution = 1


def _start_an_execution_again(evidence: Evidence) -> None:
    evidence.nodes[_NODE].log.insert(3, ("execution_started", {"run": _RUN, "execution": 2}))


def _jump(evidence: Evidence) -> None:
    _rewrite(evidence, [*map(_reported, ("ACCEPTED", "RUNNING")), _released()])


def _rise_again(evidence: Evidence) -> None:
    evidence.jobs[_JOB].seen = {_RUN: ["CANCELLED", "RUNNING"]}


def _lose_an_event(evidence: Evidence) -> None:
    del evidence.coordinator.events[_NODE][2]


def _forge_an_event(evidence: Evidence) -> None:
    events = evidence.coordinator.events[_NODE]
    events[2] = Stored(3, events[2].hash, _reported("FAILED"))


def _leave_a_command(evidence: Evidence) -> None:
    evidence.coordinator.commands[_NODE] = _chain([b"offer", b"cancel"])


def _forget_the_cursor(evidence: Evidence) -> None:
    evidence.coordinator.cursors[_NODE] = Head()


def _leak(evidence: Evidence) -> None:
    evidence.places["the coordinator's log"] = b"unknown sample " + _CANARY + b"\n"


def _log_a_key(evidence: Evidence) -> None:
    evidence.logs["agent FI"] = b"key=" + _SECRET


def _set_apart(evidence: Evidence) -> None:
    evidence.coordinator.node_states[_NODE] = "QUARANTINED"


PLANTED: list[tuple[Callable[[Evidence], None], str]] = [
    (_lose_the_job, "no job is lost"),
    (_leave_the_job_open, "no job is lost"),
    (_end_it_too_late, "no job is lost"),
    (_never_end_it, "no job is lost"),
    (_invent_a_job, "nobody invents a job"),
    (_leave_the_run_open, "runs end at both sides"),
    (_say_something_else, "runs end at both sides"),
    (_release_twice, "one release per run"),
    (_tell_a_release_twice, "one release per run"),
    (_change_the_summary, "one release per run"),
    (_lose_the_summary, "one release per run"),
    (_make_a_summary_up, "one release per run"),
    (_release_without_approval, "releases follow their checks"),
    (_decide_after_the_release, "releases follow their checks"),
    (_commit_the_first_execution, "the highest execution commits"),
    (_start_an_execution_again, "the highest execution commits"),
    (_jump, "runs move along the graph"),
    (_rise_again, "runs move along the graph"),
    (_lose_an_event, "chains agree"),
    (_forge_an_event, "chains agree"),
    (_leave_a_command, "chains agree"),
    (_forget_the_cursor, "chains agree"),
    (lambda evidence: evidence.left_over.append(_RUN), "no cancelled run lives"),
    (lambda evidence: evidence.unproven.append("summary: other bytes"), "results are proven"),
    (lambda evidence: evidence.wrong_figures.append("rs1 of FI is [1, 2, 3]"), "results are right"),
    (lambda evidence: setattr(evidence.coordinator, "log_fault", "entry 3"), "logs are whole"),
    (_leak, "nothing leaked"),
    (_log_a_key, "no secret is logged"),
    (_set_apart, "the federation is whole again"),
    (lambda evidence: evidence.unhealed.append("node FI does not connect"), "the federation is whole again"),
    (lambda evidence: evidence.mistakes.append("KeyError: 'run'"), "the workload was served"),
]


def test_honest_evidence_passes_every_check() -> None:
    assert verdicts(honest()) == {name: [] for name in CHECKS}


@pytest.mark.parametrize(("plant", "broken"), PLANTED)
def test_a_planted_violation_is_found(plant: Callable[[Evidence], None], broken: str) -> None:
    evidence = honest()
    plant(evidence)
    assert CHECKS[broken](evidence) != []


def test_a_run_that_both_sides_ended_at_its_deadline_may_have_either_name() -> None:
    evidence = honest()
    evidence.nodes[_NODE].runs[_RUN].state, evidence.coordinator.runs[_RUN] = "CANCELLED", "EXPIRED"
    assert CHECKS["runs end at both sides"](evidence) == []
    evidence.nodes[_NODE].runs[_RUN].state = "DECLINED"
    assert CHECKS["runs end at both sides"](evidence) != []
    evidence.nodes[_NODE].runs[_RUN].reason = "DEADLINE_PASSED"
    assert CHECKS["runs end at both sides"](evidence) == []
    evidence.nodes[_NODE].runs[_RUN].state = "RELEASED"
    assert CHECKS["runs end at both sides"](evidence) != []


def test_only_a_coordinator_whose_clock_was_ahead_may_have_given_a_run_up_that_its_node_has_answered() -> None:
    evidence = honest()
    evidence.hurried = True
    assert CHECKS["runs end at both sides"](evidence) == []
    evidence.coordinator.runs[_RUN] = "EXPIRED"
    assert CHECKS["runs end at both sides"](evidence) == []
    evidence.coordinator.runs[_RUN] = "CANCELLED"
    assert CHECKS["runs end at both sides"](evidence) != []


def test_every_check_has_a_violation_that_it_finds() -> None:
    assert {broken for _, broken in PLANTED} == set(CHECKS)


def test_a_job_whose_submission_was_never_answered_may_be_stored_or_not() -> None:
    evidence = honest()
    evidence.jobs[_JOB].accepted = False
    assert CHECKS["no job is lost"](evidence) == []
    _lose_the_job(evidence)
    assert CHECKS["no job is lost"](evidence) == []


_PASSING = Counts(people=100, ac=60, carriers=50, others=90)
_RARE = Counts(people=100, ac=2, carriers=2, others=99)
_TRUTHS = {"FI": {"rs1": Truth(_PASSING, {}), "rs2": Truth(_RARE, {})}}


def _result(rsid: str, cell: dict[str, Any], pooled: list[int | None]) -> dict[str, Any]:
    figures = dict(zip(("people", "ac", "an"), pooled, strict=True))
    return {"variants": [{"rsid": rsid, "countries": {"FI": cell}, "pooled": figures}]}


def _cell(status: str, people: int | None, ac: int | None, an: int | None) -> dict[str, Any]:
    return {"status": status, "people": people, "ac": ac, "an": an}


@pytest.mark.parametrize(
    ("result", "right"),
    [
        (_result("rs1", _cell("released", 100, 60, 200), [100, 60, 200]), True),
        (_result("rs2", _cell("suppressed", None, None, None), [None, None, None]), True),
        (_result("rs1", _cell("released", 100, 61, 200), [100, 61, 200]), False),
        (_result("rs1", _cell("released", 100, 60, 200), [200, 120, 400]), False),
        (_result("rs1", _cell("suppressed", None, None, None), [None, None, None]), False),
        (_result("rs2", _cell("released", 100, 2, 200), [100, 2, 200]), False),
        (_result("rs2", _cell("suppressed", None, 2, None), [None, None, None]), False),
    ],
)
def test_figures_are_held_against_the_data(result: dict[str, Any], right: bool) -> None:
    assert (wrong_figures(result, _TRUTHS) == []) is right


def test_the_canaries_are_samples_genotype_rows_and_paths(tmp_path: Path) -> None:
    for node in NODES:
        (tmp_path / node).mkdir()
        (tmp_path / node / "samples.tsv").write_text(f"sample\tsex\n{node}-person\tfemale\n")
        row = "\t".join([*map(str, range(9)), f"0|1:{node}"])
        (tmp_path / node / "aisnp.vcf.gz").write_bytes(gzip.compress(f"#CHROM\n{row}\n".encode()))
    found = canaries(tmp_path, ["/nodes/FI"])
    assert {b"FI-person", b"0|1:GB", b"/nodes/FI"} <= set(found)


def test_the_report_tells_every_violation_and_claims_no_more_than_the_rule_of_three() -> None:
    clean = Report(7, "sqlite", "redis", "nemesis")
    clean.faults.update({"kill agent": 300})
    clean.add(verdicts(honest()))
    assert "at most 1.00% per fault" in clean.text()
    assert clean.document()["violations"] == 0

    broken = honest()
    _leak(broken)
    clean.add(verdicts(broken))
    assert "nothing leaked" in "".join(clean.violations)
    assert clean.document()["supports"] is None
    assert "rule of three" not in clean.text()


def test_the_spread_of_measured_times_is_of_ordered_values() -> None:
    values = [float(value) for value in range(1, 101)]
    random.Random(1).shuffle(values)
    assert spread(values) == {"n": 100, "p50": 50.0, "p95": 95.0, "max": 100.0}
