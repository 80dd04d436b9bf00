"""``hansa-node drain``: start nothing new, before maintenance."""

from __future__ import annotations

import click

from hansa.runtime.clock import utc_now
from hansa.runtime.drain import DrainFile
from node_agent.cli.invocation import Invocation, output_option, state_options
from node_agent.cli.render import print_json


@click.command(short_help="Start nothing new; what runs goes on.")
@click.option("--off", is_flag=True, help="Start what waits again.")
@state_options
@output_option
@click.pass_obj
def drain(invocation: Invocation, *, off: bool) -> None:
    """Start no run that has not started; what runs goes on, and leaves as ever.

    Jobs that are offered meanwhile are judged, approved and accepted, and wait.
    Holds within a second where the agent runs, and until `--off`, over restarts.
    """
    DrainFile(invocation.open_state().path).express(utc_now(), off=off)
    if invocation.json:
        print_json({"draining": not off})
        return
    click.echo(
        "What waits is started again." if off else "Nothing new is started. `hansa-node status` counts the runs."
    )
