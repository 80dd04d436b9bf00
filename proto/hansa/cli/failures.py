"""Every end that is not a success: one line on stderr, and an exit code."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from hansa.cli.text import safe
from hansa.contract.errors import HansaError, Reason
from hansa.contract.states import JobState

DONE: Final = 0
REFUSED: Final = 1
WRONG_USAGE: Final = 2
UNREACHABLE: Final = 3
DEADLINE_PASSED: Final = 4
NOT_PROVEN: Final = 5
COME_AGAIN: Final = 6
INTERRUPTED: Final = 130

USAGE: Final = "USAGE"


def of_job(state: str) -> int:
    """Return the exit code of a job that has ended in ``state``."""
    if state == JobState.COMPLETED:
        return DONE
    return DEADLINE_PASSED if state == JobState.EXPIRED else REFUSED


def of_error(error: HansaError, *, contacted: bool) -> int:
    """Return the exit code of ``error``.

    Args:
        error: what was refused.
        contacted: whether the coordinator had been reached before.
    """
    if error.reason is Reason.COORDINATOR_UNREACHABLE:
        return UNREACHABLE
    if error.reason is Reason.EVIDENCE_INVALID:
        return NOT_PROVEN
    if error.retry_seconds > 0:
        return COME_AGAIN
    return REFUSED if contacted else WRONG_USAGE


def wants_json(arguments: Sequence[str]) -> bool:
    """Say whether errors are to be JSON, also when the arguments cannot be parsed."""
    return "--output=json" in arguments or ("--output", "json") in itertools.pairwise(arguments)


def report(error: Exception, *, contacted: bool, as_json: bool) -> int:
    """Tell ``error`` on stderr and return the exit code.

    Raises:
        Exception: ``error`` itself where it is a fault of ours and
            HANSA_DEBUG is set.
    """
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return WRONG_USAGE
    if isinstance(error, click.Abort):
        return INTERRUPTED
    if isinstance(error, HansaError):
        tell(error.reason, error.public, error.field, as_json=as_json)
        return of_error(error, contacted=contacted)
    if isinstance(error, click.ClickException):
        tell(USAGE, error.format_message(), _field(error), as_json=as_json)
        return WRONG_USAGE
    if os.environ.get("HANSA_DEBUG"):
        raise error
    words = f"A fault of this program ({type(error).__name__}); set HANSA_DEBUG=1 to see where."
    tell(Reason.INTERNAL, words, "", as_json=as_json)
    return REFUSED


def tell(reason: str, text: str, field: str, *, as_json: bool) -> None:
    """Write one error to stderr, as a line or as a line of JSON."""
    if as_json:
        print(json.dumps({"error": {"reason": reason, "message": text, "field": field}}), file=sys.stderr)
        return
    where = f" ({safe(field)})" if field else ""
    print(f"error: {safe(reason)}: {safe(text)}{where}", file=sys.stderr)


def _field(error: click.ClickException) -> str:
    parameter = getattr(error, "param", None)
    return parameter.name or "" if isinstance(parameter, click.Parameter) else ""
