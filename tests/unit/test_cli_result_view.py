import pytest

from hansa.cli.result_view import print_result
from hansa.sdk.result import Result, parse_result
from tests.support.frequency_results import (
    RS,
    VARIANT,
    encoded,
    part,
    result_document,
    two_countries_and_one_suppressed,
)


def read(document: dict[str, object]) -> Result:
    return parse_result(encoded(document))


def test_the_table_has_a_column_per_country_and_the_pooled_figures(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(read(two_countries_and_one_suppressed()))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]
    assert lines == [
        "Job 019aa0de-0000-7000-8000-000000000001  COMPLETED",
        " VARIANT                         GB                 FI           ES              POOLED",
        " rs12913832        113/182 (0.6209)   181/198 (0.9141)   suppressed   294/380 (0.7737)*",
        " 15:28365618:A:G        0.549–0.688        0.867–0.946                      0.729–0.813",  # noqa: RUF001
        "AC/AN (AF), Wilson 95 % interval.",
        "* partial: not every country of the job is in the sum.",
        "suppressed: the node may not give the figure. Too few people, nobody, or no such variant: all look the same.",
    ]


def test_strata_stand_below_their_variant(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(read(two_countries_and_one_suppressed(stratified=True)))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    female = next(row for row in rows if row[:1] == ["female"])
    assert female == ["female", "57/90", "(0.6333)", "suppressed", "suppressed", "57/90", "(0.6333)*"]


def test_a_node_that_did_not_answer_is_named_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    parts = {"FI": part({(VARIANT, "all"): (99, 181)}, rsids={VARIANT: RS})}
    print_result(read(result_document(parts, nodes=("FI", "ES"))))
    out = capsys.readouterr().out
    assert "no answer: the node released nothing for this job." in out
    assert ["ES", "DECLINED", "NODE_BUSY"] in [line.split() for line in out.splitlines()]


def test_a_job_that_did_not_complete_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    document = result_document({}, nodes=("FI", "ES"), state="DECLINED") | {"variants": []}
    print_result(read(document), waits_for="the quorum of 2 is out of reach")
    out = capsys.readouterr().out
    assert "DECLINED" in out
    assert "the quorum of 2 is out of reach" in out
    assert "VARIANT" not in out


def test_names_in_a_result_move_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "FI\x1b[31m\u202e"
    document = result_document({}, nodes=(evil,), requested=(evil,))
    print_result(read(document), waits_for=evil)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\\x1b[31m" in out


def test_a_long_result_is_printed_whole_without_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    labels = [f"2:{position}:A:G" for position in range(136_400_000, 136_400_100)]
    parts = {"FI": part({(label, "all"): (99, 90) for label in labels})}
    print_result(read(result_document(parts, nodes=("FI",), requested=None)))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.strip().startswith("2:1364") for line in lines) == 100
    assert not any("–" in line for line in lines)  # noqa: RUF001
