"""Waits for a job's end: a live view on a terminal, a line per change elsewhere.

All of it goes to stderr; stdout is for the outcome alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from hansa.cli import documents
from hansa.cli.output import cell, console
from hansa.cli.text import safe
from hansa.contract.states import RUN_TERMINAL
from hansa.runtime.clock import utc_now
from hansa.sdk.client import Client
from hansa.sdk.errors import RemoteError
from hansa.sdk.jobs import job_state_name, run_state_name
from hansa.v1 import types_pb2

_LOST: Final = "connection lost, trying again"
# Shorter pauses are not worth a line.
_WORTH_TELLING_SECONDS: Final = 1.0


def tell_wait(refusal: RemoteError, seconds: float) -> None:
    """Tell on stderr what the coordinator refused for now, and when it is asked again."""
    if seconds >= _WORTH_TELLING_SECONDS:
        words = f"{safe(refusal.reason)}: {safe(refusal.public)} Trying again in {seconds:.0f} s."
        print(words, file=sys.stderr, flush=True)


class Board(Protocol):
    """Where the progress of a job is shown."""

    def show(self, job: types_pb2.Job) -> None:
        """Show where the job stands now."""

    def lose(self) -> None:
        """Show that the coordinator cannot be reached at the moment."""


async def wait_for_end(client: Client, job_id: str) -> types_pb2.Job:
    """Show the job's progress until it has ended; return it as it ended.

    Raises:
        RemoteError: the job is unknown, or the coordinator stayed unreachable.
    """
    board, live = _board()
    with live:
        async for job in client.jobs.watch(job_id, on_loss=board.lose):
            board.show(job)
            last = job
    return last


def _board() -> tuple[Board, AbstractContextManager[object]]:
    if not sys.stderr.isatty():
        return PlainBoard(lambda line: print(line, file=sys.stderr, flush=True)), nullcontext()
    view = LiveBoard()
    live = Live(view, console=console(sys.stderr), refresh_per_second=8, transient=True)
    return view, live


class PlainBoard:
    """One line per change."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._known: dict[str, str] = {}
        self._lost = False

    def show(self, job: types_pb2.Job) -> None:
        """Write a line for every run whose state is new, and one for the job's end."""
        self._lost = False
        for subject, line in changes(self._known, job).items():
            self._known[subject] = line
            self._write(f"{safe(subject)}: {safe(line)}")

    def lose(self) -> None:
        """Write once that the connection is lost."""
        if not self._lost:
            self._write(_LOST)
        self._lost = True


def changes(known: Mapping[str, str], job: types_pb2.Job) -> dict[str, str]:
    """Return what is new in ``job`` by subject: a node, or the job itself.

    Args:
        known: what was last said of each subject.
        job: where the job stands now.
    """
    lines = {run.node: _line(run) for run in job.runs}
    lines[f"job {job.job_id}"] = job_state_name(job)
    return {subject: line for subject, line in lines.items() if known.get(subject) != line}


def _line(run: types_pb2.Run) -> str:
    parts = [run_state_name(run), run.reason, f"incident {run.incident}" if run.incident else ""]
    return " ".join(part for part in parts if part)


class LiveBoard:
    """One line per country, drawn again several times a second."""

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        self._clock = clock
        self._job: types_pb2.Job | None = None
        self._lost = False
        self._spinner = Spinner("dots")

    def show(self, job: types_pb2.Job) -> None:
        """Keep ``job`` for the next drawing."""
        self._job, self._lost = job, False

    def lose(self) -> None:
        """Say so at the next drawing."""
        self._lost = True

    def __rich__(self) -> RenderableType:
        """Return the view of the job as it is known now."""
        if self._job is None:
            return Text("")
        now = self._clock()
        head = Text.assemble(("Job ", "bold"), safe(self._job.job_id), "  ", (safe(self._job.analysis), "dim"))
        table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
        for run in self._job.runs:
            table.add_row(*self._row(run, now))
        return Group(head, table, self._foot(now))

    def _row(self, run: types_pb2.Run, now: datetime) -> tuple[RenderableType, ...]:
        state = run_state_name(run)
        ended = state in RUN_TERMINAL
        mark: RenderableType = Text("•", style=cell(state).style) if ended else self._spinner
        age = "" if ended else shown_age(documents.moment(run.updated_at), now)
        return mark, Text(safe(run.node), style="bold"), cell(state), Text(age, style="dim"), cell(run.reason)

    def _foot(self, now: datetime) -> Text:
        if self._job is None:
            return Text("")
        if self._lost:
            return Text(_LOST, style="yellow")
        deadline = documents.moment(self._job.deadline)
        left = f"  deadline in {shown_span(deadline - now)}" if deadline and deadline > now else ""
        words = safe(self._job.waits_for) or job_state_name(self._job)
        return Text(f"{words}{left}   Ctrl-C leaves the job running", style="dim")


def shown_age(since: datetime | None, now: datetime) -> str:
    """Return how long ago ``since`` was, for people."""
    return "" if since is None else shown_span(max(now - since.astimezone(UTC), timedelta()))


def shown_span(span: timedelta) -> str:
    """Return a length of time in its two largest units."""
    seconds = int(span.total_seconds())
    sizes = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    parts: list[str] = []
    for unit, size in sizes:
        count, seconds = divmod(seconds, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
