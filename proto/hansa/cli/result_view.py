"""A result as a table: a row per variant, a column per country, and the pooled figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich import box
from rich.table import Table
from rich.text import Text

from hansa.cli.output import console, plain_table
from hansa.cli.text import safe
from hansa.contract.states import JobState, RunState
from hansa.sdk.result import Figures, NodeEnd, Result, VariantResult

# With more rows than these, intervals would make the table too long to read.
_ROWS_WITH_INTERVALS: Final = 24
_WORDS: Final = {"no_answer": "no answer"}


def print_result(result: Result, *, waits_for: str = "") -> None:
    """Print ``result`` for people.

    Args:
        result: what the coordinator combined.
        waits_for: the job's own words on why it ended.
    """
    out = console()
    out.print(Text.assemble(("Job ", "bold"), safe(result.job_id), "  ", safe(result.state)))
    if result.state != JobState.COMPLETED and waits_for:
        out.print(Text(safe(waits_for)))
    if result.variants:
        out.print(result_table(result))
        for note in footnotes(result):
            out.print(Text(note, style="dim"))
    elif result.sealed and result.state == JobState.COMPLETED:
        out.print(Text("The summaries are sealed to you; open them with --recipient-key FILE."))
    elif result.state == JobState.COMPLETED:
        out.print(Text("No node released a figure for any variant of the region."))
    if result.state != JobState.COMPLETED or any(end.state != RunState.RELEASED for end in result.nodes):
        out.print(plain_table(("NODE", "STATE", "REASON"), [_node_row(end) for end in result.nodes]))


def _node_row(end: NodeEnd) -> Sequence[str]:
    return end.node, end.state, end.reason or ""


def result_table(result: Result) -> Table:
    """Return the table of figures; strata stand below their variant."""
    places = result.places
    strata = _strata(result)
    intervals = len(result.variants) * (1 + len(strata)) <= _ROWS_WITH_INTERVALS
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("VARIANT", overflow="fold")
    for place in places:
        table.add_column(safe(place), justify="right")
    table.add_column("POOLED", justify="right")
    for variant in result.variants:
        whole = [variant.countries.get(place) for place in places]
        table.add_row(
            _title(variant),
            *(figures_cell(figures, intervals=intervals) for figures in whole),
            figures_cell(variant.pooled, intervals=intervals, bold=True),
        )
        for stratum in strata:
            parts = [figures.strata.get(stratum) if figures else None for figures in whole]
            pooled = variant.pooled.strata.get(stratum)
            table.add_row(
                Text(f"  {safe(stratum)}", style="dim"),
                *(figures_cell(part, intervals=intervals) for part in parts),
                figures_cell(pooled, intervals=intervals, bold=True),
            )
    return table


def _strata(result: Result) -> list[str]:
    found = (
        stratum
        for variant in result.variants
        for figures in (variant.pooled, *variant.countries.values())
        for stratum in figures.strata
    )
    return list(dict.fromkeys(found))


def _title(variant: VariantResult) -> Text:
    if variant.rsid and variant.rsid != variant.variant:
        return Text.assemble(safe(variant.rsid), "\n", (safe(variant.variant), "dim"))
    return Text(safe(variant.variant))


def figures_cell(figures: Figures | None, *, intervals: bool, bold: bool = False) -> Text:
    """Return ``AC/AN (AF)``, with the interval below; or the word for why there is none."""
    if figures is None or not figures.is_released or figures.af is None:
        # A pooled figure has no status of its own: there is none because all countries' are suppressed.
        status = (figures.status if figures else "") or "suppressed"
        return Text(_WORDS.get(status, safe(status)), style="dim")
    mark = "*" if figures.partial else ""
    text = Text(f"{figures.ac}/{figures.an} ({figures.af:.4f}){mark}", style="bold" if bold else "")
    if intervals and figures.ci95 is not None:
        low, high = figures.ci95
        text.append(f"\n{low:.3f}–{high:.3f}", style="not bold dim")  # noqa: RUF001 - an en dash between numbers
    return text


def footnotes(result: Result) -> list[str]:
    """Return the lines that explain what the table shows."""
    whole = [figures for variant in result.variants for figures in (variant.pooled, *variant.countries.values())]
    cells = [*whole, *(part for figures in whole for part in figures.strata.values())]
    notes = ["AC/AN (AF), Wilson 95 % interval."]
    if any(figures.partial and figures.is_released for figures in cells):
        notes.append("* partial: not every country of the job is in the sum.")
    if any(not figures.is_released and figures.status in {"", "suppressed"} for figures in cells):
        notes.append(
            "suppressed: the node may not give the figure. Too few people, nobody, or no such variant: all look the same."
        )
    if any(figures.status == "no_answer" for figures in cells):
        notes.append("no answer: the node released nothing for this job.")
    return notes
