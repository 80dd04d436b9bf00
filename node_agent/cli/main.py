"""``hansa-node``: the node operator's command.

Every command is imported when it is called, so that none pays for another, and
so that ``worker``, which forks, never loads grpc.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from hansa.contract.errors import HansaError, Reason
from node_agent.cli.invocation import Invocation, state_options
from node_agent.cli.render import print_error

EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
_EXIT_INTERRUPTED: Final = 130
_USAGE: Final = "USAGE"

_COMMANDS: Final = {
    "init": "setup",
    "enrol": "setup",
    "card": "setup",
    "run": "processes",
    "worker": "processes",
    "dataset": "datasets",
    "airlock": "airlock",
    "job": "jobs",
    "approval": "approvals",
    "policy": "policies",
    "audit": "audit",
    "status": "inspection",
    "doctor": "inspection",
    "backup": "backups",
    "restore": "backups",
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
    as_json = _wants_json(arguments)
    try:
        outcome = cli.main(list(arguments), prog_name="hansa-node", obj=Invocation(), standalone_mode=False)
    except HansaError as error:
        print_error(error.reason.value, error.public, error.field, as_json=as_json)
        return _exit_code(error.reason)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_USAGE
    except click.ClickException as error:
        print_error(_USAGE, error.format_message(), _field(error), as_json=as_json)
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return _EXIT_INTERRUPTED
    except OSError as error:
        print_error(Reason.FILE_INVALID.value, str(error), as_json=as_json)
        return EXIT_REFUSED
    except Exception as error:
        if os.environ.get("HANSA_DEBUG"):
            raise
        words = f"A fault of this program ({type(error).__name__}); set HANSA_DEBUG=1 to see where."
        print_error(Reason.INTERNAL.value, words, as_json=as_json)
        return EXIT_REFUSED
    return outcome if isinstance(outcome, int) else 0


def _wants_json(arguments: Sequence[str]) -> bool:
    """Say whether errors are to be JSON, also when the arguments cannot be parsed."""
    return "--output=json" in arguments or ("--output", "json") in itertools.pairwise(arguments)


def _field(error: click.ClickException) -> str:
    parameter = getattr(error, "param", None)
    return (parameter.name or "") if isinstance(parameter, click.Parameter) else ""


def _exit_code(reason: Reason) -> int:
    unreachable = {Reason.AGENT_UNREACHABLE, Reason.COORDINATOR_UNREACHABLE}
    return EXIT_UNREACHABLE if reason in unreachable else EXIT_REFUSED
