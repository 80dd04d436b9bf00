"""What ``hansa-node`` prints.

Texts from runs, logs and other machines may hold terminal escapes; everything
goes through ``plain`` before a person's terminal sees it.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

RUN_ID_SHOWN: Final = 12
_PIPE_COLUMNS: Final = 200
_MOST_ROWS: Final = 200


def plain(text: object, *, keep: str = "") -> str:
    """Return ``text`` with every character that is not printable escaped.

    Args:
        text: anything; its ``str`` is shown.
        keep: characters that stay as they are, for instance newlines.
    """
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in str(text))


def print_json(value: object) -> None:
    """Print ``value`` as one JSON document; ASCII only, so no escape gets through."""
    click.echo(json.dumps(value, indent=2))


def print_error(reason: str, message: str, field: str = "", *, as_json: bool) -> None:
    """Print one error on stderr, as a line for people or as a line of JSON."""
    if as_json:
        click.echo(json.dumps({"error": {"reason": reason, "message": message, "field": field}}), err=True)
        return
    click.echo(f"error: {reason}: {plain(message)}", err=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print ``rows``, or the words ``empty`` when there are none."""
    if not rows:
        click.echo(empty)
        return
    # rich takes a while to import: only tables pay for it.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS, highlight=False).print(table)


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values, one pair a line."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {plain(value)}")


def print_runs(runs: Sequence[Mapping[str, Any]], *, empty: str) -> None:
    """Print runs as a table."""
    columns = ("run", "state", "reason", "analysis", "dataset", "submitter", "since", "try")
    keys = ("state", "reason", "analysis", "dataset", "submitter", "updated_at")
    rows = [(str(run["run_id"])[:RUN_ID_SHOWN], *(shown(run.get(key)) for key in keys), _try(run)) for run in runs]
    print_table(columns, rows, empty=empty)


def _try(run: Mapping[str, Any]) -> str:
    """Return which try this is: the coordinator's attempt, and the node's execution in it."""
    return f"{run.get('attempt', '-')}.{run.get('execution', '-')}"


def shown(value: object) -> str:
    """Return a cell's text: a dash for nothing; a list by commas; of values by name, those that are not zero."""
    if value is None or value == "":
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {count}" for name, count in value.items() if count != 0) or "-"
    return str(value)


def summary_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of a summary's figures, one row per cell of its axes.

    Figures that are not released show as a dash.
    """
    arrays = summary["arrays"]
    axes = list(dict.fromkeys(axis for array in arrays.values() for axis in array["axes"]))
    figures = {name: _cells(array, summary["axes"]) for name, array in arrays.items()}
    rows = []
    for labels in itertools.islice(itertools.product(*(summary["axes"][axis] for axis in axes)), _MOST_ROWS):
        place = dict(zip(axes, labels, strict=True))
        cells = [figures[name].get(tuple(place[axis] for axis in arrays[name]["axes"])) for name in arrays]
        rows.append([*labels, *(shown(cell) for cell in cells)])
    return [*axes, *arrays], rows


def _cells(array: Mapping[str, Any], axes: Mapping[str, Sequence[str]]) -> dict[tuple[str, ...], object]:
    keys = itertools.product(*(axes[axis] for axis in array["axes"]))
    return dict(zip(keys, array["values"], strict=True))
