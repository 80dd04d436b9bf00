"""``hansa-node dataset``: what the node offers."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import DATASET_ID
from node_agent.cli.invocation import Invocation, output_option, quiet_logs, state_options
from node_agent.cli.render import print_facts, print_json, print_table, shown
from node_agent.config import StateFolder


class _DatasetId(click.ParamType[str]):
    name = "ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return ``value`` if it can name a dataset."""
        if not isinstance(value, str) or not DATASET_ID.fullmatch(value):
            self.fail("a dataset's id is 1 to 64 of A-Z a-z 0-9 . _ -, and begins with a letter or digit", param, ctx)
        return value


_FILE = click.Path(path_type=Path, exists=True, dir_okay=False, readable=True)


@click.group()
@state_options
def dataset() -> None:
    """Add, list and remove the node's datasets."""


@dataset.command("add")
@click.argument("dataset_id", metavar="ID", type=_DatasetId())
@click.option("--vcf", required=True, type=_FILE, help="VCF compressed with bgzip, its index beside it.")
@click.option("--samples", required=True, type=_FILE, help="TSV of the same people: sample, sex.")
@click.option("--build", type=click.Choice(["GRCh37", "GRCh38"]), help="Where the VCF's contigs do not tell it.")
@state_options
@output_option
@click.pass_obj
def add(invocation: Invocation, dataset_id: str, vcf: Path, samples: Path, build: str | None) -> None:
    """Take the genotypes of a VCF in as dataset ID.

    The files are read once; the node keeps a read-only snapshot of its own.
    """
    state = invocation.open_state()
    from node_agent.local_api.client import AgentClient

    agent = AgentClient(state)
    # Asked before the long part, not after it.
    if any(known["id"] == dataset_id for known in agent.datasets()):
        raise HansaError(Reason.DATASET_EXISTS, field="id")
    with _incoming(state) as staging:
        _import(vcf, samples, build, staging)
        added = agent.add_dataset(dataset_id, staging)
    if invocation.json:
        print_json({"dataset": added})
        return
    facts = ("id", "build", "people", "variants", "skipped", "snapshot")
    print_facts({name: shown(added.get(name)) for name in facts})


def _import(vcf: Path, samples: Path, build: str | None, staging: Path) -> None:
    from rich.console import Console

    from node_agent.staging.importer import import_dataset

    quiet_logs()
    console = Console(stderr=True)
    busy = console.status("Reading the genotypes …") if console.is_terminal else contextlib.nullcontext()
    with busy:
        import_dataset(vcf, samples, build=build, target=staging)


@contextlib.contextmanager
def _incoming(state: StateFolder) -> Iterator[Path]:
    """Yield the name of a new folder to stage in; nothing of it is left, whatever ends this process."""
    folder = state.datasets / f".incoming-{secrets.token_hex(8)}"

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield folder
    finally:
        # The agent has moved it away when all went well.
        shutil.rmtree(folder, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)


@dataset.command("list")
@state_options
@output_option
@click.pass_obj
def list_(invocation: Invocation) -> None:
    """List the node's datasets."""
    from node_agent.local_api.client import AgentClient

    agent = AgentClient(invocation.open_state())
    found = agent.datasets()
    if invocation.json:
        print_json({"datasets": found})
        return
    columns = ("id", "build", "people", "variants", "skipped", "snapshot")
    print_table(columns, [[shown(one.get(name)) for name in columns] for one in found], empty="No datasets.")


@dataset.command("remove")
@click.argument("dataset_id", metavar="ID", type=_DatasetId())
@state_options
@output_option
@click.pass_obj
def remove(invocation: Invocation, dataset_id: str) -> None:
    """Remove dataset ID and its snapshot; refused while a run uses it."""
    from node_agent.local_api.client import AgentClient

    agent = AgentClient(invocation.open_state())
    agent.remove_dataset(dataset_id)
    if invocation.json:
        print_json({"removed": dataset_id})
        return
    click.echo(f"Removed {dataset_id}.")
