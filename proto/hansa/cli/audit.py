"""``hansa audit``: the coordinator's log, read and verified by auditors and federation operators."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from hansa.cli import documents
from hansa.cli.invocation import Invocation, remote
from hansa.cli.output import print_fields, print_json, print_table
from hansa.cli.session import run
from hansa.contract.errors import HansaError, Reason
from hansa.contract.merkle import Frontier, leaf_hash
from hansa.contract.notes import Note
from hansa.contract.raw_keys import key_text
from hansa.sdk.audit import Leaf
from hansa.sdk.client import Client
from hansa.sdk.keys import read_public_key
from hansa.sdk.log_check import LogTrust, LogVerdict, cosigners, open_log_checkpoint, prove, read_leaves, verify_log
from hansa.sdk.log_memory import recall, remember

FORMAT: Final = "hansa-audit-v2"
_LOG_KEY = click.option(
    "--log-key",
    type=click.Path(path_type=Path),
    help="Public key (PEM) of the log, instead of the verified directory's; cosignatures are not counted then.",
)


@click.group()
def audit() -> None:
    """For auditors: read, verify and export the coordinator's log."""


@audit.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@remote
@click.pass_obj
def show(invocation: Invocation, limit: int, output: str) -> None:
    """Show what was done, the newest first."""
    found = run(invocation, lambda client: client.admin.audit(limit=limit))
    if output == "json":
        print_json({"entries": [documents.audit_entry(one) for one in found]})
        return
    rows = [
        (one.index, documents.shown_time(one.at), one.actor or "(erased)", one.action, one.subject or "(erased)")
        for one in found
    ]
    print_table(("#", "AT", "WHO", "DID", "TO"), rows, nothing="Nothing was done yet.")


@audit.command()
@_LOG_KEY
@click.option("--first-time", is_flag=True, help="Forget what was verified last time; only after you know why.")
@remote
@click.pass_obj
def verify(invocation: Invocation, log_key: Path | None, first_time: bool, output: str) -> int:
    """Read the whole log, recompute it, and compare; exit code 1 if it was changed, cut or forked.

    What was verified is remembered beside the trust root, and the next
    verification must continue it.
    """

    async def work(client: Client) -> LogVerdict:
        trust = await _trust(client, log_key)
        found = await verify_log(client.audit, trust, None if first_time else recall(client.profile))
        if not found.fault:
            remember(client.profile, found.note)
        return found

    found = run(invocation, work)
    is_good = not found.fault and len(found.cosigned) >= (found.needed or 0)
    if output == "json":
        print_json(_verdict_json(found, is_good=is_good))
    else:
        print_fields(_verdict(found, is_good=is_good))
    return 0 if is_good else 1


def _verdict(found: LogVerdict, *, is_good: bool) -> dict[str, object]:
    fields: dict[str, object] = {"verdict": "sound" if is_good else "BROKEN" if found.fault else "TOO FEW WITNESSES"}
    if found.first_wrong is not None:
        fields["first wrong"] = found.first_wrong
    if found.fault:
        fields["fault"] = found.fault
    needed = "?" if found.needed is None else found.needed
    return {
        **fields,
        "size": found.size,
        "root": found.root,
        "witnesses": f"{len(found.cosigned)} ({', '.join(found.cosigned) or 'none'}); needed: {needed}",
        "continues": "nothing was verified before"
        if found.since is None
        else f"the {found.since} entries of last time",
        "erased": found.erased,
    }


def _verdict_json(found: LogVerdict, *, is_good: bool) -> dict[str, Any]:
    return {
        "sound": is_good,
        "fault": found.fault or None,
        "first_wrong": found.first_wrong,
        "size": found.size,
        "root": found.root,
        "witnesses": list(found.cosigned),
        "witnesses_needed": found.needed,
        "continues": found.since,
        "erased": found.erased,
        "checkpoint": found.note.decode(),
    }


@audit.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_LOG_KEY
@remote
@click.pass_obj
def export(invocation: Invocation, file: Path, log_key: Path | None, output: str) -> None:
    """Write the log to FILE as lines of JSON: first its signed checkpoint, then each entry's bytes.

    Names and words about people stay where they are: the entries hold keyed
    hashes of them. What is written is compared with the checkpoint.
    """

    async def work(client: Client) -> tuple[Note, tuple[str, ...], bytes]:
        trust = await _trust(client, log_key)
        note = open_log_checkpoint(await client.audit.checkpoint(), trust)
        return note, cosigners(note, trust), await _write(client, file, note)

    note, nodes, root = run(invocation, work)
    at = note.checkpoint
    if root != at.root:
        broken = file.rename(file.with_name(f"{file.name}.broken"))
        words = f"The entries are not those of the checkpoint; see {broken} and `hansa audit verify`."
        raise HansaError(Reason.LOG_FORKED, words)
    fields = {"file": str(file), "size": at.size, "root": at.root.hex(), "witnesses": len(nodes)}
    if output == "json":
        print_json(fields)
    else:
        print_fields(fields)


async def _write(client: Client, file: Path, note: Note) -> bytes:
    """Write the leaves that ``note`` covers, and return their root."""
    tree = Frontier()
    # Never over another file: an earlier export is what a later one is held against.
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(json.dumps({"format": FORMAT, "checkpoint": note.to_bytes().decode()}) + "\n")

        def take(page: Sequence[Leaf]) -> None:
            for leaf in page:
                body, found = leaf.body.decode(errors="backslashreplace"), leaf_hash(leaf.body)
                tree.append(found)
                out.write(json.dumps({"index": leaf.index, "body": body, "leaf_hash": found.hex()}) + "\n")

        await read_leaves(client.audit, note.checkpoint.size, take)
    return tree.root()


@audit.command("prove")
@click.argument("number", type=click.IntRange(1))
@_LOG_KEY
@remote
@click.pass_obj
def prove_entry(invocation: Invocation, number: int, log_key: Path | None, output: str) -> None:
    """Print entry NUMBER (of `hansa audit show`) with the proof that it is in the log, verified.

    Whoever has the JSON and the log's key can verify it without Hansa.
    """

    async def work(client: Client) -> dict[str, Any]:
        return await prove(client.audit, await _trust(client, log_key), number)

    found = run(invocation, work)
    if output == "json":
        print_json(found)
        return
    print_fields({"entry": found["number"], "log": f"proven among {found['size']} entries", "body": found["body"]})


async def _trust(client: Client, log_key: Path | None) -> LogTrust:
    if log_key is not None:
        return LogTrust(client.profile.federation, key_text(read_public_key(log_key)))
    return LogTrust.of((await client.trust.view()).directory)
