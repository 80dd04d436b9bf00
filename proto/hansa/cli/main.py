"""The ``hansa`` command: researchers and federation operators.

This module imports nothing slow: what a command needs is imported when it is
called, so that ``hansa --help`` is there at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from hansa.cli import failures
from hansa.cli.invocation import Invocation, remember_profile

# name -> (module, what `hansa --help` says of it)
_GROUPS: Final[Mapping[str, tuple[str, str]]] = {
    "key": ("hansa.cli.key", "Make keys: to sign with, or to receive with."),
    "analyses": ("hansa.cli.catalogue", "Which analyses there are."),
    "analysis": ("hansa.cli.analysis", "Build, review and stage analyses; see their votes."),
    "datasets": ("hansa.cli.catalogue", "Which datasets the nodes offer."),
    "nodes": ("hansa.cli.catalogue", "Which nodes there are, and whether they are connected."),
    "job": ("hansa.cli.job", "Submit jobs, watch them, read their results."),
    "audit": ("hansa.cli.audit", "For auditors: read, verify and export the coordinator's log."),
    "trust": ("hansa.cli.trust", "The key ceremony: who belongs to the federation, signed by a threshold."),
    "admin": ("hansa.cli.admin", "For federation operators: people, nodes, proposals, audit."),
}


class RootGroup(click.Group):
    """Finds groups by name, and turns every end into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the groups in the order of their use."""
        return list(_GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Return the group ``cmd_name``, importing it now."""
        if cmd_name not in _GROUPS:
            return None
        command = getattr(importlib.import_module(_GROUPS[cmd_name][0]), cmd_name)
        _quiet_logs()
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Write the groups without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in _GROUPS.items()])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **extra: Any) -> Any:
        """Run the command and exit with its code."""
        arguments = list(sys.argv[1:] if args is None else args)
        invocation = Invocation()
        extra["standalone_mode"] = False
        try:
            value = super().main(arguments, prog_name or "hansa", obj=invocation, **extra)
        except Exception as error:  # the outermost edge: every end is one line and a code
            sys.exit(failures.report(error, contacted=invocation.contacted, as_json=failures.wants_json(arguments)))
        sys.exit(value if isinstance(value, int) else 0)


def _quiet_logs() -> None:
    """Send what a command's parts log to stderr, errors only: stdout is the command's."""
    import logging

    from hansa.runtime.logging import set_up_logging

    set_up_logging("hansa", level=logging.ERROR)


@click.group(cls=RootGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hansa", prog_name="hansa")
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    expose_value=False,
    callback=remember_profile,
    help="Profile file; else HANSA_PROFILE, else hansa/profile.toml in the user's configuration folder.",
)
def cli() -> None:
    """Ask federated genomic data: the analysis travels, only approved summaries come back."""


def main() -> None:
    """Run ``hansa``."""
    # gRPC's own log lines would stand between our one line and the user.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    cli.main()
