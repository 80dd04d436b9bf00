"""``hansa-node``: the node operator's command.

Every command is imported when it is called, so that none pays for another, and
so that ``worker``, which forks, never loads grpc.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from hansa.contract.errors import HansaError, Reason
from node_agent.cli.invocation import Invocation, state_options
from node_agent.cli.render import plain, print_error

EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
_EXIT_INTERRUPTED: Final = 130

_COMMANDS: Final = {
    "init": "setup",
    "enrol": "setup",
    "run": "processes",
    "worker": "processes",
    "dataset": "datasets",
    "airlock": "airlock",
    "job": "jobs",
    "policy": "policies",
    "status": "inspection",
    "doctor": "inspection",
}


class _Commands(click.Group):
    """The commands by name, each in a module that is imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names in the order in which an operator meets them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command; None for a name that is not one."""
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(f"node_agent.cli.{_COMMANDS[cmd_name]}"), cmd_name)
        return command if isinstance(command, click.Command) else None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hansa", prog_name="hansa-node")
@state_options
def cli() -> None:
    """Run and steer a Hansa node.

    Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 the agent, or at
    enrolment the coordinator, cannot be reached.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(execute(sys.argv[1:] if arguments is None else arguments))


def execute(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; errors are printed."""
    invocation = Invocation()
    try:
        outcome = cli.main(list(arguments), prog_name="hansa-node", obj=invocation, standalone_mode=False)
    except HansaError as error:
        print_error(error, as_json=invocation.json)
        return _exit_code(error.reason)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return _EXIT_INTERRUPTED
    except OSError as error:
        click.echo(f"error: {Reason.FILE_INVALID.value}: {plain(error)}", err=True)
        return EXIT_REFUSED
    return outcome if isinstance(outcome, int) else 0


def _exit_code(reason: Reason) -> int:
    unreachable = {Reason.AGENT_UNREACHABLE, Reason.COORDINATOR_UNREACHABLE}
    return EXIT_UNREACHABLE if reason in unreachable else EXIT_REFUSED
