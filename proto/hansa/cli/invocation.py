"""What one call of ``hansa`` knows of itself, and the options that every command has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(slots=True)
class Invocation:
    """Which profile was asked for, and whether the coordinator was reached.

    ``contacted`` decides between the exit codes of wrong usage and of a refusal.
    """

    profile: Path | None = None
    contacted: bool = False


def remember_profile(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    """Keep the path given with ``--profile``; the one nearest to the command wins."""
    if value is not None:
        ctx.ensure_object(Invocation).profile = value


def profile_option(function: Function) -> Function:
    """Give a command ``--profile``."""
    return click.option(
        "--profile",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=remember_profile,
        help="Profile file; else HANSA_PROFILE, else the user's own.",
    )(function)


def output_option(function: Function) -> Function:
    """Give a command ``--output``."""
    return click.option(
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="A table for people, JSON for programs.",
    )(function)


def remote(function: Function) -> Function:
    """Give a command that calls the coordinator its options."""
    return profile_option(output_option(function))
