import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from hansa.cli.waiting import LiveBoard, PlainBoard, changes, shown_span
from hansa.v1 import types_pb2

NOW = datetime(2025, 11, 22, 16, 0, tzinfo=UTC)
Run, Job = types_pb2.Run, types_pb2.Job  # for their states


def job(state: "types_pb2.Job.State.ValueType" = Job.PENDING, **runs: "types_pb2.Run.State.ValueType") -> types_pb2.Job:
    made = Job(job_id="j", analysis="allele-frequency", state=state, waits_for="FI: runs")
    made.deadline.FromDatetime(NOW + timedelta(minutes=90))
    for node, at in runs.items():
        run = made.runs.add(node=node, state=at)
        run.updated_at.FromDatetime(NOW - timedelta(seconds=3))
    return made


def test_without_a_terminal_there_is_a_line_per_change_and_none_for_a_repeat() -> None:
    lines: list[str] = []
    board = PlainBoard(lines.append)
    board.show(job(FI=Run.OFFERED, ES=Run.OFFERED))
    board.show(job(FI=Run.OFFERED, ES=Run.OFFERED))
    board.show(job(FI=Run.RUNNING, ES=Run.OFFERED))
    board.show(job(Job.COMPLETED, FI=Run.RELEASED, ES=Run.OFFERED))
    assert lines == [
        "FI: OFFERED",
        "ES: OFFERED",
        "job j: PENDING",
        "FI: RUNNING",
        "FI: RELEASED",
        "job j: COMPLETED",
    ]


def test_a_lost_connection_is_told_once_until_it_is_back() -> None:
    lines: list[str] = []
    board = PlainBoard(lines.append)
    board.lose()
    board.lose()
    board.show(job())
    board.lose()
    assert [line for line in lines if "lost" in line] == ["connection lost, trying again"] * 2


def test_reason_and_incident_are_told() -> None:
    failed = job(Job.FAILED, FI=Run.FAILED)
    failed.runs[0].reason = "ANALYSIS_FAILED"
    failed.runs[0].incident = "I-1"
    assert changes({}, failed)["FI"] == "FAILED ANALYSIS_FAILED incident I-1"


def test_text_from_a_node_moves_no_terminal() -> None:
    evil = job(FI=Run.DECLINED)
    evil.runs[0].reason = "\x1b[2Jgone"
    lines: list[str] = []
    PlainBoard(lines.append).show(evil)
    board = LiveBoard(lambda: NOW)
    board.show(evil)
    assert "\x1b" not in "".join(lines) + drawn(board)


def drawn(board: LiveBoard) -> str:
    shown = io.StringIO()
    Console(file=shown, width=100, color_system=None).print(board)
    return shown.getvalue()


def test_the_live_view_has_a_line_per_country_and_says_what_it_waits_for() -> None:
    board = LiveBoard(lambda: NOW)
    board.show(job(FI=Run.RUNNING, ES=Run.RELEASED))
    lines = drawn(board).splitlines()
    assert next(line for line in lines if "FI" in line).split()[1:] == ["FI", "RUNNING", "3", "s"]
    assert next(line for line in lines if "ES" in line).split() == ["•", "ES", "RELEASED"]
    assert "FI: runs  deadline in 1 h 30 min" in drawn(board)
    board.lose()
    assert "connection lost" in drawn(board)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3661, "1 h 1 min"), (90_000, "1 d 1 h"), (3605, "1 h 5 s")],
)
def test_spans_are_told_in_their_two_largest_units(seconds: int, shown: str) -> None:
    assert shown_span(timedelta(seconds=seconds)) == shown
