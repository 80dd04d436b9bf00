import os
import struct
from pathlib import Path
from typing import Any

import pytest

from hansa.cli.plot import check_plot_path, draw_result, figure, panel_title, rows_of
from hansa.contract.errors import HansaError, Reason
from hansa.sdk.result import parse_result
from tests.support.frequency_results import (
    RS,
    VARIANT,
    encoded,
    part,
    result_document,
    two_countries_and_one_suppressed,
)

RESULT = parse_result(encoded(two_countries_and_one_suppressed()))


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_panel_has_a_line_per_country_the_pooled_one_marked_and_suppression_said() -> None:
    (axes,) = figure(RESULT).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["GB", "FI", "ES", "pooled*"]
    assert texts(axes) == ["0.621", "0.914", "suppressed", "0.774"]
    assert axes.get_title(loc="left") == f"{RS}   {VARIANT}"


def test_intervals_are_drawn_as_given() -> None:
    (axes,) = figure(RESULT).axes
    interval = RESULT.variants[0].countries["GB"].ci95
    assert interval is not None
    assert any(tuple(line.get_xdata()) == interval for line in axes.lines)


def test_strata_have_lines_of_their_own() -> None:
    stratified = parse_result(encoded(two_countries_and_one_suppressed(stratified=True)))
    labels = [row.label for row in rows_of(stratified.variants[0], stratified.places)]
    assert labels == [name for place in ("GB", "FI", "ES", "pooled*") for name in (place, "female", "male")]


def test_of_many_variants_the_first_twelve_are_drawn_and_it_says_so() -> None:
    labels = [f"2:{position}:A:G" for position in range(136_400_000, 136_400_020)]
    parts = {"FI": part({(label, "all"): (99, 90) for label in labels})}
    picture = figure(parse_result(encoded(result_document(parts, nodes=("FI",), requested=None))))
    assert sum(axes.get_visible() for axes in picture.axes) == 12
    assert "the first 12 of 20 variants" in picture._supxlabel.get_text()


def test_a_png_is_written_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    path.write_text("an older picture")
    draw_result(RESULT, path)
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data.startswith(b"\x89PNG")
    assert (width > 800, height > 400) == (True, True)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["plot.svg", "plot.PDF"])
def test_other_kinds_are_written_by_their_ending(tmp_path: Path, name: str) -> None:
    draw_result(RESULT, tmp_path / name)
    assert (tmp_path / name).read_bytes()[:5] in {b"<?xml", b"%PDF-"}


@pytest.mark.parametrize(
    "name", ["plot", "plot.gif", "plot.png.exe", "none/plot.png", "pipe.png", "link.png", "folder.png"]
)
def test_a_plot_goes_into_a_plain_file_of_a_known_kind_only(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(HansaError) as caught:
        check_plot_path(tmp_path / name)
    assert caught.value.reason is Reason.FILE_INVALID


def test_a_result_without_variants_is_not_drawn(tmp_path: Path) -> None:
    empty = parse_result(encoded(result_document({}, nodes=("FI",), requested=None)))
    with pytest.raises(HansaError):
        draw_result(empty, tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []


def test_long_alleles_do_not_run_over_the_picture() -> None:
    variant = RESULT.variants[0].model_copy(update={"variant": f"1:1:A:{'ACGT' * 100}", "rsid": None})
    assert len(panel_title(variant)) < 40
