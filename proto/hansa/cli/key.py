"""``hansa key``: a person's own key. Needs no profile and calls nobody."""

from __future__ import annotations

from pathlib import Path

import click

from hansa.cli.invocation import output_option
from hansa.cli.output import print_fields, print_json
from hansa.sdk.keys import create_key, create_recipient_key, key_fingerprint


@click.group()
def key() -> None:
    """Make keys: to sign with, or to receive with."""


@key.command()
@click.argument("paths", type=click.Path(path_type=Path), metavar="PATH…", nargs=-1, required=True)
@click.option("--recipient", is_flag=True, help="An X25519 key: summaries can be sealed to it.")
@output_option
def create(paths: tuple[Path, ...], recipient: bool, output: str) -> None:
    """Make a key: PATH, which only you may read, and PATH.pub for the federation operator.

    It is an Ed25519 key, which signs, unless --recipient is given.
    """
    for path in paths:
        fingerprint = key_fingerprint(create_recipient_key(path) if recipient else create_key(path))
        document = {"key_file": str(path), "public_key_file": f"{path}.pub", "key_fingerprint": fingerprint}
        if output == "json":
            print_json(document)
        else:
            print_fields({"key": path, "public key": f"{path}.pub", "fingerprint": fingerprint})
