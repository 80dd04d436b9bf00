"""The samples file: what is accepted, and what is said of one that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from hansa.contract.errors import HansaError, Reason
from node_agent.staging.samples import read_samples, sexes_in_order


def _read(folder: Path, text: str) -> dict[str, str]:
    path = folder / "samples.tsv"
    path.write_text(text, encoding="utf-8")
    return dict(read_samples(path))


def test_columns_may_stand_in_any_order_and_others_are_ignored(tmp_path: Path) -> None:
    text = "population\tsex\tsample\nFIN\tfemale\tanna\nFIN\tunknown\tbela\n\n"
    assert _read(tmp_path, text) == {"anna": "female", "bela": "unknown"}


def test_a_byte_order_mark_and_other_line_ends_do_no_harm(tmp_path: Path) -> None:
    assert _read(tmp_path, "\ufeffsample\tsex\r\nanna\tmale\r\n") == {"anna": "male"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "first line"),
        ("sample\tgender\nanna\tmale\n", "first line"),
        ("sample,sex\nanna,male\n", "first line"),
        ("sample\tsex\nanna\tmale\nbela\tM\n", "Line 3"),
        ("sample\tsex\nanna\n", "Line 2"),
        ("sample\tsex\n\tmale\n", "Line 2"),
        ("sample\tsex\nanna\tmale\nbela\tmale\nanna\tmale\n", "Line 4"),
    ],
)
def test_a_wrong_line_is_refused_by_its_number_and_nobody_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(HansaError) as refusal:
        _read(tmp_path, text)
    assert refusal.value.reason is Reason.SAMPLES_INVALID
    assert refusal.value.field == "samples"
    assert words in refusal.value.public
    assert "anna" not in str(refusal.value)


def test_a_samples_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.tsv"
    for content in (None, b"\xff\xfe\x00"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(HansaError) as refusal:
            read_samples(path)
        assert refusal.value.reason is Reason.SAMPLES_INVALID


@pytest.mark.parametrize(
    ("listed", "counts"),
    [
        ({"anna": "female"}, ("1 of the VCF's 2", "0 of the samples file's 1")),
        ({"anna": "female", "bela": "male", "cem": "male"}, ("0 of the VCF's 2", "1 of the samples file's 3")),
        ({"dora": "female", "eva": "male"}, ("2 of the VCF's 2", "2 of the samples file's 2")),
    ],
)
def test_other_people_than_the_vcfs_are_counted_and_not_named(listed: dict[str, str], counts: tuple[str, ...]) -> None:
    with pytest.raises(HansaError) as refusal:
        sexes_in_order(("anna", "bela"), listed)
    assert refusal.value.reason is Reason.SAMPLES_MISMATCH
    assert all(count in refusal.value.public for count in counts)
    assert not any(name in str(refusal.value) for name in ("anna", "bela", "cem", "dora", "eva"))


def test_sexes_come_in_the_order_of_the_vcf() -> None:
    assert sexes_in_order(("bela", "anna"), {"anna": "female", "bela": "male"}) == ("male", "female")
