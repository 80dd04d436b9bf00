"""What every command of ``hansa-node`` shares: which state folder, which form of output."""

from __future__ import annotations

import os
import pwd
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from hansa.contract.errors import HansaError, Reason
from node_agent.config import StateFolder, open_state_folder

STATE_VARIABLE: Final = "HANSA_NODE_STATE"
PROFILE_VARIABLE: Final = "HANSA_NODE_PROFILE"

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(slots=True)
class Invocation:
    """The shared options as typed, of the group or of the command."""

    state: Path | None = None
    profile: Path | None = None
    json: bool = False

    def state_path(self) -> Path:
        """Return the state folder's path; the options go before the environment.

        Raises:
            click.UsageError: both options, or nothing that tells.
            HansaError: ``CONFIG_INVALID``; the profile cannot be used.
        """
        if self.state is not None and self.profile is not None:
            raise click.UsageError("Give --state or --profile, not both.")
        if self.state is not None:
            return self.state
        if self.profile is not None:
            return _profiled(self.profile)
        if os.environ.get(STATE_VARIABLE):
            return Path(os.environ[STATE_VARIABLE])
        if os.environ.get(PROFILE_VARIABLE):
            return _profiled(Path(os.environ[PROFILE_VARIABLE]))
        raise click.UsageError(
            f"Which node? Give --state DIR or --profile FILE, or set {STATE_VARIABLE} or {PROFILE_VARIABLE}."
        )

    def open_state(self) -> StateFolder:
        """Return the state folder, made by ``hansa-node init``.

        Raises:
            HansaError: ``STATE_FOLDER_INVALID``, ``CONFIG_INVALID``.
        """
        state = open_state_folder(self.state_path())
        if not state.is_initialised:
            raise HansaError(
                Reason.STATE_FOLDER_INVALID,
                f"{state.path} is no node's state folder; make it one with `hansa-node init`.",
                field="state",
            )
        return state


def _profiled(profile: Path) -> Path:
    """Return ``state`` of a profile; a relative one is relative to the profile."""
    try:
        raw = tomllib.loads(profile.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HansaError(
            Reason.CONFIG_INVALID, f"Profile {profile} cannot be read.", field="profile", log=str(error)
        ) from error
    if set(raw) != {"state"} or not isinstance(raw["state"], str):
        raise HansaError(Reason.CONFIG_INVALID, f"Profile {profile} must hold one key: state, a path.", field="profile")
    return profile.absolute().parent / raw["state"]


def invocation_of(context: click.Context) -> Invocation:
    """Return the invocation's shared options."""
    return context.find_root().ensure_object(Invocation)


def state_options(function: _F) -> _F:
    """Add ``--state`` and ``--profile``; they may stand before or after the command's name."""

    def keep(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
        if value is not None:
            setattr(invocation_of(context), str(parameter.name), value)

    path = click.Path(path_type=Path)
    for name, help_ in (
        ("--profile", f"TOML file that names the state folder [env: {PROFILE_VARIABLE}]."),
        ("--state", f"The node's state folder [env: {STATE_VARIABLE}]."),
    ):
        function = click.option(name, type=path, callback=keep, expose_value=False, help=help_)(function)
    return function


def output_option(function: _F) -> _F:
    """Add ``--output table|json``."""

    def keep(context: click.Context, _parameter: click.Parameter, value: str) -> None:
        invocation_of(context).json = value == "json"

    return click.option(
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        callback=keep,
        is_eager=True,
        expose_value=False,
        help="A table for people, or JSON for programs.",
    )(function)


def person_options(function: _F) -> _F:
    """Add ``--person`` and ``--key``: who signs, with their own key."""
    function = click.option(
        "--key", required=True, type=click.Path(path_type=Path), help="Your private key, from `hansa key create`."
    )(function)
    return click.option("--person", required=True, help="Your name in the directory.")(function)


def quiet_logs() -> None:
    """Send what a command's parts log to stderr, errors only: stdout is the command's."""
    import logging

    from hansa.runtime.logging import set_up_logging

    set_up_logging("hansa-node", level=logging.ERROR)


def login_name() -> str:
    """Return the operating system's name for who runs this; the environment is not asked."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid-{os.getuid()}"
