"""Tables for people and JSON for programs, on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa.cli.text import safe

# A table takes only the width it needs; in a file or a pipe none is cut.
_NO_TERMINAL_WIDTH: Final = 10_000

_STYLES: Final[Mapping[str, str]] = {
    "RELEASED": "green",
    "COMPLETED": "green",
    "ACTIVE": "green",
    "RUNNING": "cyan",
    "STAGING": "cyan",
    "CHECKING": "cyan",
    "AWAITING_RELEASE": "yellow",
    "AWAITING_APPROVAL": "yellow",
    "PENDING_CONFIRMATION": "yellow",
    "CANCELLING": "yellow",
    "WITHHELD": "magenta",
    "DECLINED": "red",
    "FAILED": "red",
    "EXPIRED": "red",
    "REVOKED": "red",
    "SUSPENDED": "red",
    "QUARANTINED": "red",
}


def console(stream: TextIO | None = None) -> Console:
    """Return a console on ``stream`` (stdout), which understands no markup."""
    target = sys.stdout if stream is None else stream
    width = None if target.isatty() else _NO_TERMINAL_WIDTH
    return Console(file=target, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def cell(value: object) -> Text:
    """Return ``value`` for a table: escaped, and coloured if it is a state."""
    if isinstance(value, Text):
        return value
    text = "" if value is None else safe(str(value))
    return Text(text, style=_STYLES.get(text, ""))


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table of ``rows``; every cell that came from the wire is escaped."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    return table


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, nothing: str) -> None:
    """Print ``rows``, or the sentence ``nothing`` where there are none."""
    if rows:
        console().print(plain_table(columns, rows))
    else:
        console().print(Text(nothing))


def print_fields(fields: Mapping[str, object]) -> None:
    """Print names and values, one pair a line."""
    width = max(map(len, fields))
    out = console()
    for name, value in fields.items():
        out.print(Text.assemble((name.ljust(width), "bold"), "  ", cell(value)), soft_wrap=True)


def print_json(document: Any) -> None:
    """Print ``document`` as JSON in ASCII, so that nothing in it can move a terminal."""
    print(json.dumps(document, indent=2, ensure_ascii=True))
