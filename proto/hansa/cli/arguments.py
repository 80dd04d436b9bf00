"""Reads what is typed: durations and name=value pairs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import click

from hansa.contract.errors import HansaError, Reason

_DURATION: Final = re.compile(r"(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,8})s)?")


class Duration(click.ParamType[timedelta]):
    """A length of time such as ``30m``, ``1h30m`` or ``2d``."""

    name = "duration"

    def __init__(self, reason: Reason, field: str) -> None:
        self._reason, self._field = reason, field

    def convert(
        self,
        value: object,
        param: click.Parameter | None,  # noqa: ARG002 - click's signature
        ctx: click.Context | None,  # noqa: ARG002
    ) -> timedelta:
        """Return the duration.

        Raises:
            HansaError: with the reason that the option has; not a duration,
                or none that is positive.
        """
        if isinstance(value, timedelta):
            return value
        text = str(value)
        match = _DURATION.fullmatch(text)
        parts = [int(part or 0) for part in match.groups()] if match else []
        if not any(parts):
            raise HansaError(
                self._reason, f"{text[:40]!a} is not a positive duration such as 30m, 1h30m or 2d.", field=self._field
            )
        days, hours, minutes, seconds = parts
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def parse_pairs(texts: Sequence[str]) -> dict[str, str]:
    """Return the parameters in ``name=value`` texts.

    Raises:
        click.BadParameter: no name, no ``=``, or a name that stands twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{text[:60]!a} is not name=value", param_hint="--param")
        if name in pairs:
            raise click.BadParameter(f"{name[:60]!a} is given twice", param_hint="--param")
        pairs[name] = value
    return pairs
