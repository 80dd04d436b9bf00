"""``hansa analysis``: build a bundle, review it, stage it, and see what the votes come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import click

from hansa.cli.invocation import Invocation, output_option, remote
from hansa.cli.output import print_fields, print_json, print_table
from hansa.cli.session import run
from hansa.contract.job import AnalysisRef
from hansa.contract.review import ORGANISATIONS_NEEDED, REVIEWERS_NEEDED, Count, count_votes
from hansa.runtime.clock import utc_now
from hansa.sdk.bundle import read_bundle, read_signed_bundle, write_bundle, write_vote
from hansa.sdk.keys import load_private_key
from hansa.sdk.request import version_rank
from hansa.trust.bundles import SignedBundle, ref_of, sign_authorship, sign_vote
from hansa.trust.draft import Draft
from hansa.trust.view import TrustedAnalysis

_PATH: Final = click.Path(path_type=Path)
_PERSON: Final = click.option("--person", required=True, help="Your name in the directory.")
_KEY: Final = click.option("--key", "key_path", type=_PATH, required=True, help="Your private key's file.")


@click.group()
def analysis() -> None:
    """Build, review and stage analyses; see their votes."""


@analysis.command()
@click.argument("folder", type=_PATH)
@_PERSON
@_KEY
@click.option("--to", "target", type=_PATH, required=True, help="The bundle's folder, which is made.")
@output_option
def build(folder: Path, person: str, key_path: Path, target: Path, output: str) -> None:
    """Make a bundle of the analysis in FOLDER, and sign it as its author."""
    files = read_bundle(folder)
    ref = ref_of(files)
    authorship = sign_authorship(ref, person, load_private_key(key_path), utc_now())
    write_bundle(target, SignedBundle(files, authorship))
    _show(ref, {"bundle": str(target), "author": person}, output)


@analysis.command()
@click.argument("bundle_folder", metavar="BUNDLE", type=_PATH)
@_PERSON
@_KEY
@click.option("--approve", "verdict", flag_value="approve", help="It may run at every node.")
@click.option("--reject", "verdict", flag_value="reject", help="It may not, whatever others say.")
@click.option("--comment", default="", help="For everybody.")
@output_option
def review(bundle_folder: Path, *, person: str, key_path: Path, verdict: str | None, comment: str, output: str) -> None:
    """Vote on the bundle in BUNDLE, having read its files."""
    if verdict is None:
        raise click.UsageError("Pass --approve or --reject.")
    bundle = read_signed_bundle(bundle_folder)
    said = {"reviewer": person, "verdict": verdict, "comment": comment}
    write_vote(bundle_folder, sign_vote(bundle.ref, said, load_private_key(key_path), utc_now()))
    _show(bundle.ref, {"reviewer": person, "verdict": verdict}, output)


@analysis.command()
@click.argument("bundle_folder", metavar="BUNDLE", type=_PATH)
@click.option("--repo", type=_PATH, required=True, help="The working folder of the key ceremony.")
@output_option
def publish(bundle_folder: Path, repo: Path, output: str) -> None:
    """Put the bundle in BUNDLE, with its votes, into the draft of a trust repository."""
    bundle = read_signed_bundle(bundle_folder)
    draft = Draft(repo)
    draft.check()
    draft.stage(bundle)
    count = count_votes(draft.directory, bundle.ref, authorship=bundle.authorship, votes=list(bundle.votes.values()))
    document = {"author": count.author, "approved by": ", ".join(count.approved_by), "state": _state(count)}
    if output == "table" and (notes := _notes(count)):
        document["notes"] = notes
    _show(bundle.ref, document, output)


@analysis.command("list")
@remote
@click.pass_obj
def list_analyses(invocation: Invocation, output: str) -> None:
    """List the analyses of the verified trust repository, and why a vote does not count."""
    view = run(invocation, lambda client: client.trust.view())
    found = sorted(view.analyses.values(), key=lambda one: (one.name, version_rank(one.version)))
    if output == "json":
        print_json({"directory_version": view.directory.version, "analyses": [_document(one) for one in found]})
        return
    rows = [
        (one.key, _state(one.count), one.count.author, ", ".join(one.count.approved_by), _notes(one.count))
        for one in found
    ]
    columns = ("ANALYSIS", "STATE", "AUTHOR", "APPROVED BY", "NOTES")
    print_table(columns, rows, nothing="The trust repository has no analysis.")


def _state(count: Count) -> Literal["approved", "rejected", "not approved"]:
    if count.approved:
        return "approved"
    return "rejected" if count.rejected_by else "not approved"


def _notes(count: Count) -> str:
    notes = [f"{name} rejects it" for name in count.rejected_by]
    notes += [f"the vote of {name} does not count: {why}" for name, why in sorted(count.ignored.items())]
    if not count.author:
        notes.append("no author of the directory has signed it")
    if not count.rejected_by and len(count.approved_by) < REVIEWERS_NEEDED:
        notes.append(f"{REVIEWERS_NEEDED} reviewers have to approve")
    elif not count.rejected_by and len(count.organisations) < ORGANISATIONS_NEEDED:
        notes.append("all who approve are of one organisation")
    return "; ".join(notes)


def _document(found: TrustedAnalysis) -> dict[str, Any]:
    return {
        "name": found.name,
        "version": found.version,
        "digest": found.digest,
        "state": _state(found.count),
        "author": found.count.author,
        "approved_by": list(found.count.approved_by),
        "rejected_by": list(found.count.rejected_by),
        "organisations": sorted(found.count.organisations),
        "ignored": dict(found.count.ignored),
    }


def _show(ref: AnalysisRef, more: dict[str, str], output: str) -> None:
    document = {"analysis": f"{ref.name}@{ref.version}", "digest": ref.digest, **more}
    if output == "json":
        print_json(document)
    else:
        print_fields(document)
