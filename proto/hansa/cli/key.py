"""``hansa key``: a person's own key. Needs no profile and calls nobody."""

from __future__ import annotations

from pathlib import Path

import click

from hansa.cli.invocation import output_option
from hansa.cli.output import print_fields, print_json
from hansa.sdk.keys import create_key, key_fingerprint


@click.group()
def key() -> None:
    """Make the key that signs your calls and jobs."""


@key.command()
@click.argument("path", type=click.Path(path_type=Path))
@output_option
def create(path: Path, output: str) -> None:
    """Make an Ed25519 key: PATH, which only you may read, and PATH.pub for the federation operator."""
    fingerprint = key_fingerprint(create_key(path))
    document = {"key_file": str(path), "public_key_file": f"{path}.pub", "key_fingerprint": fingerprint}
    if output == "json":
        print_json(document)
    else:
        print_fields({"key": path, "public key": f"{path}.pub", "fingerprint": fingerprint})
