"""``hansa trust``: the key ceremony, in a working folder. Only ``publish`` calls the coordinator."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
from securesystemslib.signer import Key, Signer

from hansa.cli.arguments import Duration
from hansa.cli.invocation import Invocation, output_option, remote
from hansa.cli.output import console, print_fields, print_json, print_table
from hansa.cli.session import run
from hansa.contract.directory import (
    Directory,
    DirectoryNode,
    DirectoryPerson,
    DirectoryProject,
    PassportIssuer,
    Role,
)
from hansa.contract.errors import HansaError, Reason
from hansa.contract.node_card import parse_card
from hansa.contract.raw_keys import key_text
from hansa.contract.strict import strict_json
from hansa.runtime.clock import utc_now
from hansa.sdk.keys import load_private_key, read_any_public_key, read_public_key, read_recipient_public_key
from hansa.sdk.people_file import read_people
from hansa.trust import ceremony, edits
from hansa.trust.draft import Draft
from hansa.trust.files import TARGETS, read_bounded
from hansa.trust.signing import ROOT_LIFE, TARGETS_LIFE, RootPlan, file_signer, plan_changed, role_key, uri_signer

_CARD_BYTES: Final = 8 << 10
_JWKS_BYTES: Final = 256 << 10
_MOST_DAYS: Final = 3650

_PATH: Final = click.Path(path_type=Path)
_REPO: Final = click.argument("repo", type=_PATH)
_REPLACE: Final = click.option("--replace", is_flag=True, help="Take the place of the entry that is there.")


class _PublicKey(click.ParamType[Key]):
    """``[NAME=]FILE``: a public key in PEM form, with the name of who holds it."""

    name = "[name=]file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Key:  # noqa: ARG002 - click's signature
        """Return the key; its holder is NAME, or the file's name without ``.pub``."""
        if isinstance(value, Key):
            return value
        holder, equals, file = str(value).partition("=")
        path = Path(file if equals else value)
        return role_key(read_any_public_key(path), holder if equals else path.name.removesuffix(".pub"))


_KEY: Final = _PublicKey()


@click.group()
def trust() -> None:
    """The key ceremony: who belongs to the federation, signed by a threshold.

    REPO is a working folder. It holds no secret: signers pass it on, and each
    adds a signature with a key that stays with them.
    """


@trust.command()
@_REPO
@click.option("--federation", required=True, help="The federation's name, as in every profile.")
@click.option("--root-key", "root_keys", type=_KEY, multiple=True, required=True, help="Once per holder.")
@click.option("--root-threshold", type=int, required=True, help="How many of them have to sign.")
@click.option("--targets-key", "targets_keys", type=_KEY, multiple=True, required=True, help="Once per holder.")
@click.option("--targets-threshold", type=int, required=True, help="How many of them have to sign.")
@click.option("--snapshot-key", type=_KEY, required=True, help="Public; the private one goes to the coordinator.")
@click.option("--timestamp-key", type=_KEY, required=True, help="Public; the private one goes to the coordinator.")
@click.option("--log-key", type=_PATH, required=True, help="Public; of the coordinator's audit log.")
@click.option("--root-days", type=click.IntRange(1, _MOST_DAYS), default=ROOT_LIFE.days, show_default=True)
@click.option("--targets-days", type=click.IntRange(1, _MOST_DAYS), default=TARGETS_LIFE.days, show_default=True)
@output_option
def init(
    repo: Path, *, federation: str, log_key: Path, root_days: int, targets_days: int, output: str, **keys: Any
) -> None:
    """Start a trust repository in REPO, which nobody has signed yet."""
    plan = RootPlan(**keys, root_life=timedelta(days=root_days), targets_life=timedelta(days=targets_days))
    directory = edits.made(
        Directory, federation=federation, version=1, coordinator_log_key=key_text(read_public_key(log_key))
    )
    draft = Draft(repo)
    ceremony.begin(draft, plan, directory, utc_now())
    _show_status(draft, output)


@trust.command("add-person")
@_REPO
@click.argument("name")
@click.option("--organisation", required=True)
@click.option("--key", "key_path", type=_PATH, required=True, help="Their public key (.pub).")
@click.option("--recipient-key", type=_PATH, help="Their public X25519 key, to which summaries are sealed.")
@click.option("--role", "roles", type=click.Choice([role.value for role in Role]), multiple=True, required=True)
@click.option("--node", "nodes", multiple=True, help="Where a role of a node holds; once per node.")
@_REPLACE
@output_option
def add_person(
    repo: Path,
    *,
    name: str,
    organisation: str,
    key_path: Path,
    recipient_key: Path | None,
    roles: tuple[str, ...],
    nodes: tuple[str, ...],
    replace: bool,
    output: str,
) -> None:
    """Put the person NAME into the draft of REPO."""
    entry = edits.made(
        DirectoryPerson,
        name=name,
        organisation=organisation,
        signing_key=key_text(read_public_key(key_path)),
        recipient_key=None if recipient_key is None else key_text(read_recipient_public_key(recipient_key)),
        roles=tuple(dict.fromkeys(roles)),
        nodes=tuple(dict.fromkeys(nodes)),
    )
    _put(repo, entry, replace=replace, output=output)


@trust.command("add-people")
@_REPO
@click.argument("file", type=_PATH)
@_REPLACE
@output_option
def add_people(repo: Path, file: Path, replace: bool, output: str) -> None:
    """Put all people of FILE (TOML, see docs/reference/trust-repository.md) into the draft of REPO."""
    entries = read_people(file)

    def change(directory: Directory) -> Directory:
        for entry in entries:
            directory = edits.with_entry(directory, entry, replace=replace)
        return directory

    _show_edit(Draft(repo).edit(change), f"{len(entries)} people", output)


@trust.command("add-node")
@_REPO
@click.option("--card", type=_PATH, required=True, help="What `hansa-node card` printed at the node.")
@click.option("--organisation", help="The node's; unless the card has it.")
@click.option("--witness", is_flag=True, help="Its cosignatures on the coordinator's audit log count.")
@_REPLACE
@output_option
def add_node(repo: Path, card: Path, organisation: str | None, witness: bool, replace: bool, output: str) -> None:
    """Put a node into the draft of REPO. Compare the card's fingerprint with the node's operator first."""
    found = parse_card(read_bounded(card, _CARD_BYTES))
    if organisation is None and found.organisation is None:
        raise click.UsageError("The card has no organisation; pass --organisation.")
    entry = edits.made(
        DirectoryNode,
        node=found.node,
        organisation=organisation or found.organisation,
        signing_key=found.signing_key,
        agreement_key=found.agreement_key,
    )
    click.echo(f"{found.node}: the card's fingerprint is {found.fingerprint}", err=True)

    def change(directory: Directory) -> Directory:
        directory = edits.with_entry(directory, entry, replace=replace)
        return edits.with_witness(directory, entry.node) if witness else directory

    _show_edit(Draft(repo).edit(change), edits.title(entry), output)


@trust.command("add-project")
@_REPO
@click.argument("name")
@click.option("--researcher", "researchers", multiple=True, required=True, help="Once per person.")
@click.option("--dataset", "datasets", multiple=True, required=True, metavar="NODE/ID")
@click.option("--analysis", "analyses", multiple=True, required=True, metavar="NAME@VERSION")
@click.option("--valid", type=Duration(Reason.MALFORMED, "valid"), default="365d", show_default=True)
@click.option("--sealed", is_flag=True, help="Summaries must be sealed to the researcher.")
@_REPLACE
@output_option
def add_project(
    repo: Path,
    *,
    name: str,
    researchers: tuple[str, ...],
    datasets: tuple[str, ...],
    analyses: tuple[str, ...],
    valid: timedelta,
    sealed: bool,
    replace: bool,
    output: str,
) -> None:
    """Put the project NAME into the draft of REPO."""
    entry = edits.made(
        DirectoryProject,
        project=name,
        researchers=researchers,
        datasets=datasets,
        analyses=analyses,
        valid_until=(utc_now() + valid).replace(microsecond=0),
        sealed=sealed,
    )
    _put(repo, entry, replace=replace, output=output)


@trust.command("add-issuer")
@_REPO
@click.argument("url")
@click.option("--jwks", type=_PATH, required=True, help="The issuer's keys, as it publishes them.")
@_REPLACE
@output_option
def add_issuer(repo: Path, url: str, jwks: Path, replace: bool, output: str) -> None:
    """Put the passport issuer URL into the draft of REPO."""
    try:
        keys = strict_json(read_bounded(jwks, _JWKS_BYTES))
    except ValueError as error:
        raise HansaError(Reason.FILE_INVALID, f"{jwks} is not JSON.", field="jwks") from error
    _put(repo, edits.made(PassportIssuer, issuer=url, jwks=keys), replace=replace, output=output)


@trust.command("add-witness")
@_REPO
@click.argument("node")
@output_option
def add_witness(repo: Path, node: str, output: str) -> None:
    """Let NODE's cosignature on the coordinator's audit log count."""
    draft = Draft(repo)
    _show_edit(draft.edit(lambda directory: edits.with_witness(directory, node)), f"witness {node}", output)


@trust.command()
@_REPO
@click.argument("kind", type=click.Choice(["person", "node", "project", "issuer", "witness", "analysis"]))
@click.argument("name")
@output_option
def remove(repo: Path, kind: str, name: str, output: str) -> None:
    """Take NAME out of the draft of REPO; an analysis is NAME@VERSION."""
    draft = Draft(repo)
    draft.check()
    match kind:
        case "analysis":
            plain, _, version = name.partition("@")
            draft.unstage(plain, version)
            directory = draft.directory
        case "witness":
            directory = draft.edit(lambda found: edits.without_witness(found, name))
        case "person" | "node" | "project" | "issuer":
            directory = draft.edit(lambda found: edits.without_entry(found, kind, name))
        case _:
            raise click.UsageError(f"There is no {kind}.")
    _show_edit(directory, f"no {kind} {name}", output)


def _put(repo: Path, entry: edits.Entry, *, replace: bool, output: str) -> None:
    directory = Draft(repo).edit(lambda found: edits.with_entry(found, entry, replace=replace))
    _show_edit(directory, edits.title(entry), output)


def _show_edit(directory: Directory, what: str, output: str) -> None:
    if output == "json":
        print_json({"directory_version": directory.version, "draft": what})
    else:
        print_fields({"draft": what, "directory": f"version {directory.version}"})


@trust.command()
@_REPO
@click.option("--key", "key_path", type=_PATH, help="Your private key's file.")
@click.option("--uri", help="Or your signer: hsm:…, awskms:…, gcpkms:…, azurekms:…, hv:…, file2:….")
@click.option("--as", "holder", help="With --uri: the name under which the root has your key.")
@output_option
def sign(repo: Path, key_path: Path | None, uri: str | None, holder: str | None, output: str) -> None:
    """Add your signature to whatever in REPO waits for one of your key. Look at `hansa trust status` before."""
    draft = Draft(repo)
    signed = ceremony.sign(draft, _signer(draft, key_path, uri, holder), utc_now())
    click.echo(f"Signed: {', '.join(signed)}", err=True)
    _show_status(draft, output)


def _signer(draft: Draft, key_path: Path | None, uri: str | None, holder: str | None) -> Signer:
    if (key_path is None) == (uri is None) or (uri is None) != (holder is None):
        raise click.UsageError("Pass either --key FILE, or --uri URI with --as NAME.")
    if key_path is not None:
        return file_signer(load_private_key(key_path))
    key = ceremony.key_held_by(draft, holder or "")
    return uri_signer(uri or "", key, lambda secret: str(click.prompt(secret, hide_input=True, err=True)))


@trust.command()
@_REPO
@click.option("--add-root-key", type=_KEY, multiple=True)
@click.option("--remove-root-key", multiple=True, metavar="NAME")
@click.option("--root-threshold", type=int)
@click.option("--add-targets-key", type=_KEY, multiple=True)
@click.option("--remove-targets-key", multiple=True, metavar="NAME")
@click.option("--targets-threshold", type=int)
@click.option("--snapshot-key", type=_KEY, help="The new one.")
@click.option("--timestamp-key", type=_KEY, help="The new one.")
@output_option
def rotate(repo: Path, output: str, **changes: Any) -> None:
    """Begin the next root of REPO, with other keys or thresholds, or with a later expiry alone.

    Thresholds of the old root's keys and of the new one's have to sign it.
    """
    draft = Draft(repo)
    ceremony.rotate(draft, plan_changed(ceremony.current_plan(draft), changes), utc_now())
    _show_status(draft, output)


@trust.command()
@_REPO
@output_option
def renew(repo: Path, output: str) -> None:
    """Begin a new version of the targets of REPO with the same content, before the old one expires."""
    draft = Draft(repo)
    ceremony.renew(draft, utc_now())
    _show_status(draft, output)


@trust.command()
@_REPO
@output_option
def status(repo: Path, output: str) -> None:
    """Show what REPO holds, what is new in it, who has signed and who has not."""
    _show_status(Draft(repo), output)


@trust.command()
@_REPO
@remote
@click.pass_obj
def publish(invocation: Invocation, repo: Path, output: str) -> None:
    """Give the signed state of REPO to the coordinator, which puts it in force."""
    files = ceremony.publishable(Draft(repo), utc_now())
    answer = run(invocation, lambda client: client.admin.publish_trust(files))
    if answer.targets_version != files.newest(TARGETS):
        raise HansaError(
            Reason.TRUST_ROLLBACK,
            f"In force is version {answer.targets_version}, {repo} has {files.newest(TARGETS)}; use the newest copy.",
            field="repo",
        )
    document = {
        "root": answer.root_version,
        "targets": answer.targets_version,
        "snapshot": answer.snapshot_version,
        "timestamp": answer.timestamp_version,
        "directory_version": answer.directory_version,
    }
    if output == "json":
        print_json(document)
    else:
        print_fields(document)


def _show_status(draft: Draft, output: str) -> None:
    found = ceremony.status(draft, utc_now())
    if output == "json":
        print_json(_status_document(found))
        return
    print_fields({"federation": found.federation, "directory": f"version {found.directory_version}"})
    rows = [
        (
            role.role,
            role.version,
            f"{role.expires:%Y-%m-%d}",
            "signed" if role.in_force else f"needs {role.needed} more",
            ", ".join(role.signed),
            ", ".join(role.missing),
        )
        for role in found.roles
    ]
    print_table(("ROLE", "VERSION", "EXPIRES", "STATE", "SIGNED BY", "NOT SIGNED BY"), rows, nothing="")
    for line in found.changes:
        console().print(f"  {line}")


def _status_document(found: ceremony.Status) -> dict[str, Any]:
    return {
        "federation": found.federation,
        "directory_version": found.directory_version,
        "ready": found.ready,
        "roles": [
            {
                "role": role.role,
                "version": role.version,
                "expires": _time(role.expires),
                "in_force": role.in_force,
                "threshold": role.threshold,
                "needed": role.needed,
                "signed_by": list(role.signed),
                "not_signed_by": list(role.missing),
            }
            for role in found.roles
        ],
        "changes": list(found.changes),
    }


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S}Z"
