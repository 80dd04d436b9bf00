"""``hansa analyses``, ``hansa datasets``, ``hansa nodes``: what there is to ask, and whom."""

from __future__ import annotations

from collections.abc import Sequence

import click

from hansa.cli import documents
from hansa.cli.invocation import Invocation, remote
from hansa.cli.output import cell, print_fields, print_json, print_table
from hansa.cli.session import run
from hansa.contract.manifest import ChoiceParameter, Manifest, Parameter
from hansa.v1 import types_pb2


@click.group()
def analyses() -> None:
    """Which analyses there are."""


@analyses.command("list")
@remote
@click.pass_obj
def list_analyses(invocation: Invocation, output: str) -> None:
    """List the published analyses."""
    found = run(invocation, lambda client: client.catalogue.analyses())
    if output == "json":
        print_json({"analyses": [documents.analysis(one) for one in found]})
        return
    rows = [(one.name, one.version, _title(one)) for one in found]
    print_table(("ANALYSIS", "VERSION", "TITLE"), rows, nothing="No analysis is published.")


def _title(analysis: types_pb2.Analysis) -> str:
    manifest = documents.manifest(analysis)
    return manifest.title if manifest else ""


@analyses.command("show")
@click.argument("name")
@remote
@click.pass_obj
def show_analysis(invocation: Invocation, name: str, output: str) -> None:
    """Show what analysis NAME (or NAME@VERSION) takes and gives."""
    plain, _, version = name.partition("@")
    found = run(invocation, lambda client: client.catalogue.analysis(plain, version))
    if output == "json":
        print_json(documents.analysis(found))
        return
    manifest = documents.manifest(found)
    print_fields(
        {
            "analysis": f"{found.name}@{found.version}",
            "title": manifest.title if manifest else "",
            "description": manifest.description if manifest else "",
            "disclosure": manifest.disclosure if manifest else "",
            "digest": found.digest,
        }
    )
    if manifest is not None:
        _print_parameters(manifest)


def _print_parameters(manifest: Manifest) -> None:
    rows = [(name, _takes(spec), _need(name, manifest), spec.description) for name, spec in manifest.parameters.items()]
    print_table(("PARAMETER", "TAKES", "NEEDED", "DESCRIPTION"), rows, nothing="It takes no parameters.")


def _takes(spec: Parameter) -> str:
    match spec:
        case ChoiceParameter():
            return " | ".join(spec.choices)
        case _:
            return {"variants": "chrom:pos:ref:alt or rs ids, by commas", "region": "chrom:start-end"}[spec.type]


def _need(name: str, manifest: Manifest) -> str:
    if manifest.parameters[name].required:
        return "yes"
    for group in manifest.one_of:
        if name in group:
            return f"exactly one of {', '.join(group)}"
    return "no"


@click.group()
def datasets() -> None:
    """Which datasets the nodes offer."""


@datasets.command("list")
@remote
@click.pass_obj
def list_datasets(invocation: Invocation, output: str) -> None:
    """List the datasets that jobs may name."""
    found = run(invocation, lambda client: client.catalogue.datasets())
    if output == "json":
        print_json({"datasets": [documents.dataset(one) for one in found]})
        return
    rows = [(one.dataset_id, one.node, one.build, one.snapshot[:19]) for one in found]
    print_table(("DATASET", "NODE", "BUILD", "SNAPSHOT"), rows, nothing="No node offers a dataset.")


@click.group()
def nodes() -> None:
    """Which nodes there are, and whether they are connected."""


@nodes.command("list")
@remote
@click.pass_obj
def list_nodes(invocation: Invocation, output: str) -> None:
    """List the nodes of the federation."""
    print_nodes(run(invocation, lambda client: client.catalogue.nodes()), output)


def print_nodes(found: Sequence[types_pb2.Node], output: str) -> None:
    """Print nodes and whether they are connected."""
    if output == "json":
        print_json({"nodes": [documents.node(one) for one in found]})
        return
    rows = [
        (
            one.node,
            cell(documents.node_state(one)),
            ", ".join([documents.connection(one), *(name.lower() for name in documents.conditions(one))]),
            documents.shown_time(one.since),
            _clock(one),
            one.reason,
        )
        for one in found
    ]
    columns = ("NODE", "STATE", "CONNECTION", "SINCE", "CLOCK", "REASON")
    print_table(columns, rows, nothing="There is no node.")


def _clock(node: types_pb2.Node) -> str:
    """Return by how much the node's clock is off; empty where that is not worth a word."""
    return f"{node.clock_ahead_seconds:+d} s" if node.clock_ahead_seconds else ""
