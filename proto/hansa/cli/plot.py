"""Draws a result: allele frequencies by country with their intervals."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from hansa.cli.text import safe
from hansa.contract.errors import HansaError, Reason
from hansa.sdk.result import Figures, Result, VariantResult

_KINDS: Final = (".png", ".svg", ".pdf")
_MOST_VARIANTS: Final = 12
_MOST_COLUMNS: Final = 3
_MOST_TITLE: Final = 30
_FILE_MODE: Final = 0o644

_POINT, _POOLED, _QUIET, _GRID = "#1f5fa8", "#111111", "#8a8a8a", "#e4e4e4"
_STRATUM_COLOURS: Final = ("#d1693a", "#3a8f5c", "#8456a8")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a panel: a place, or one stratum of it."""

    label: str
    figures: Figures | None
    colour: str
    marker: str
    is_stratum: bool = False


def check_plot_path(path: Path) -> None:
    """Return if a plot may be written to ``path``.

    Raises:
        HansaError: ``FILE_INVALID``; another kind of picture, no such folder,
            or something that is no file stands there. ``CONFIG_INVALID``;
            the drawing library is not installed.
    """
    if path.suffix.lower() not in _KINDS:
        raise _invalid(f"a plot ends in {', '.join(_KINDS)}")
    if not path.absolute().parent.is_dir():
        raise _invalid(f"there is no folder {path.absolute().parent}")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as error:
        raise _invalid(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise _invalid(f"{path} is there and is not a plain file")
    if find_spec("matplotlib") is None:
        raise HansaError(Reason.CONFIG_INVALID, "Plots need: pip install 'hansa[client]'.", field="plot")


def _invalid(words: str) -> HansaError:
    return HansaError(Reason.FILE_INVALID, f"The plot cannot be written: {words}.", field="plot")


def draw_result(result: Result, path: Path) -> None:
    """Draw ``result`` into the file ``path``, whole or not at all.

    Raises:
        HansaError: ``FILE_INVALID``; nothing to draw, or it cannot be written.
    """
    if not result.variants:
        raise _invalid("the result has no variant")
    try:
        descriptor, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=".hansa-plot-")
    except OSError as error:
        raise _invalid(f"{path}: {error.strerror}") from error
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            figure(result).savefig(file, format=path.suffix.lower()[1:], dpi=160)
            os.fchmod(file.fileno(), _FILE_MODE)
        draft.replace(path)
    except OSError as error:
        raise _invalid(f"{path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def figure(result: Result) -> Any:
    """Return the picture: a panel per variant, a line per country, the pooled figure below."""
    from matplotlib.figure import Figure  # slow to import, and needed by few commands; draws without a display

    shown = result.variants[:_MOST_VARIANTS]
    panels = [rows_of(variant, result.places) for variant in shown]
    columns = min(len(shown), _MOST_COLUMNS)
    lines = -(-len(shown) // columns)
    height = 0.34 * max(len(rows) for rows in panels) + 1.0
    width = 7.2 if columns == 1 else 4.1 * columns
    picture = Figure(figsize=(width, height * lines + 0.8), layout="constrained", facecolor="white")
    axes = picture.subplots(lines, columns, squeeze=False, sharex=True)
    for index, place in enumerate(axes.flat):
        if index >= len(shown):
            place.set_visible(False)
            continue
        _draw_panel(place, shown[index], panels[index])
        if index + columns >= len(shown):
            place.tick_params(labelbottom=True)
            place.set_xlabel("frequency of the alternate allele, 95 % interval", fontsize=9, color="#333333")
    picture.suptitle(_title(result), fontsize=12, fontweight="bold", x=0.012, ha="left")
    picture.supxlabel(_note(result), fontsize=7.5, color=_QUIET, x=0.012, ha="left")
    return picture


def rows_of(variant: VariantResult, places: Sequence[str]) -> list[Row]:
    """Return the lines of a variant's panel, from top to bottom."""
    rows: list[Row] = []
    for place in places:
        figures = variant.countries.get(place)
        rows.append(Row(safe(place), figures, _POINT, "o"))
        rows += _stratum_rows(figures)
    rows.append(Row("pooled*" if variant.pooled.partial else "pooled", variant.pooled, _POOLED, "D"))
    rows += _stratum_rows(variant.pooled)
    return rows


def panel_title(variant: VariantResult) -> str:
    """Return the variant's names; the alleles say whose frequency it is."""
    where = safe(variant.variant)
    if len(where) > _MOST_TITLE:
        where = f"{where[:_MOST_TITLE]}…"
    return f"{safe(variant.rsid)}   {where}" if variant.rsid and variant.rsid != variant.variant else where


def _stratum_rows(figures: Figures | None) -> list[Row]:
    strata = figures.strata.items() if figures else ()
    return [
        Row(safe(name), part, _STRATUM_COLOURS[number % len(_STRATUM_COLOURS)], "s", is_stratum=True)
        for number, (name, part) in enumerate(strata)
    ]


def _draw_panel(axes: Any, variant: VariantResult, rows: Sequence[Row]) -> None:
    axes.set_title(panel_title(variant), fontsize=10, loc="left", color="#222222")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.tick_params(axis="both", length=0, labelsize=9)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")
    first_pooled = next(index for index, row in enumerate(rows) if row.marker == "D")
    axes.axhline(first_pooled - 0.5, color="#bbbbbb", linewidth=0.8)
    for place, (row, label) in enumerate(zip(rows, axes.get_yticklabels(), strict=True)):
        label.set(fontsize=8 if row.is_stratum else 9, color=_QUIET if row.is_stratum else "#222222")
        label.set_fontweight("bold" if row.marker == "D" else "normal")
        _draw_row(axes, place, row)


def _draw_row(axes: Any, place: int, row: Row) -> None:
    figures = row.figures
    if figures is None or not figures.is_released or figures.af is None:
        status = (figures.status if figures else "") or "suppressed"
        words = "no answer" if status == "no_answer" else safe(status)
        axes.text(0.012, place, words, va="center", fontsize=8, style="italic", color=_QUIET)
        return
    low, high = figures.ci95 or (figures.af, figures.af)
    size = 4.5 if row.is_stratum else 6.5
    axes.plot([low, high], [place, place], color=row.colour, linewidth=1.6, solid_capstyle="round")
    axes.plot([figures.af], [place], row.marker, color=row.colour, markersize=size, markeredgecolor="white")
    # The figure stands where it does not lie on its own interval.
    at, align = (high + 0.02, "left") if high <= 0.8 else (low - 0.02, "right")  # noqa: PLR2004 - room for four digits
    axes.text(at, place, f"{figures.af:.3f}", va="center", ha=align, fontsize=8, color=row.colour)


def _title(result: Result) -> str:
    return "Allele frequency by country" if len(result.variants) > 1 else "Allele frequency"


def _note(result: Result) -> str:
    parts = [f"job {safe(result.job_id)}"]
    if len(result.variants) > _MOST_VARIANTS:
        parts.append(f"the first {_MOST_VARIANTS} of {len(result.variants)} variants")
    if any(variant.pooled.partial for variant in result.variants[:_MOST_VARIANTS]):
        parts.append("* partial: lacks a country")
    return "   ·   ".join(parts)
