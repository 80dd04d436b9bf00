"""Changes of a directory: pure, each gives a new one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from hansa.contract.digests import digest
from hansa.contract.directory import (
    Directory,
    DirectoryNode,
    DirectoryPerson,
    DirectoryProject,
    PassportIssuer,
)
from hansa.contract.errors import HansaError, Reason
from hansa.contract.raw_keys import key_digest

Kind = Literal["person", "node", "project", "issuer"]
Entry = DirectoryPerson | DirectoryNode | DirectoryProject | PassportIssuer
Model = TypeVar("Model", bound=BaseModel)

# The field of the directory, and the name within its entries.
_LISTS: Final[Mapping[Kind, tuple[str, str]]] = {
    "person": ("people", "name"),
    "node": ("nodes", "node"),
    "project": ("projects", "project"),
    "issuer": ("issuers", "issuer"),
}
_KINDS: Final[Mapping[type[Entry], Kind]] = {
    DirectoryPerson: "person",
    DirectoryNode: "node",
    DirectoryProject: "project",
    PassportIssuer: "issuer",
}


def title(entry: Entry) -> str:
    """Return what kind of entry it is, and its name."""
    kind = _KINDS[type(entry)]
    return f"{kind} {getattr(entry, _LISTS[kind][1])}"


def made(model: type[Model], **values: Any) -> Model:
    """Return a ``model`` of ``values``.

    Raises:
        HansaError: ``DIRECTORY_INVALID``, naming the first field at fault.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise HansaError(Reason.DIRECTORY_INVALID, f"{first['msg']}.", field=field) from error


def with_entry(directory: Directory, entry: Entry, *, replace: bool = False) -> Directory:
    """Return ``directory`` with ``entry``.

    Raises:
        HansaError: ``DIRECTORY_INVALID``; one of that name is there and
            ``replace`` is false, or the directory does not allow it.
    """
    kind = _KINDS[type(entry)]
    field, name = _LISTS[kind]
    wanted = getattr(entry, name)
    others = [one for one in getattr(directory, field) if getattr(one, name) != wanted]
    if len(others) != len(getattr(directory, field)) and not replace:
        raise HansaError(
            Reason.DIRECTORY_INVALID, f"The directory has a {kind} {wanted} already; pass --replace.", field=kind
        )
    return changed(directory, **{field: sorted([*others, entry], key=lambda one: str(getattr(one, name)))})


def without_entry(directory: Directory, kind: Kind, name: str) -> Directory:
    """Return ``directory`` without the entry ``name``; a node is then no witness either.

    Raises:
        HansaError: ``DIRECTORY_INVALID``; there is none of that name.
    """
    field, attribute = _LISTS[kind]
    left = [one for one in getattr(directory, field) if getattr(one, attribute) != name]
    if len(left) == len(getattr(directory, field)):
        raise _not_there(kind, name)
    changes: dict[str, Any] = {field: left}
    if kind == "node":
        changes["witnesses"] = [witness for witness in directory.witnesses if witness != name]
    return changed(directory, **changes)


def with_witness(directory: Directory, node: str) -> Directory:
    """Return ``directory`` with ``node`` as a witness of the coordinator's log."""
    return changed(directory, witnesses=sorted({*directory.witnesses, node}))


def without_witness(directory: Directory, node: str) -> Directory:
    """Return ``directory`` without the witness ``node``.

    Raises:
        HansaError: ``DIRECTORY_INVALID``; it is none.
    """
    if node not in directory.witnesses:
        raise _not_there("witness", node)
    return changed(directory, witnesses=[witness for witness in directory.witnesses if witness != node])


def changed(directory: Directory, **fields: Any) -> Directory:
    """Return ``directory`` with other ``fields``, checked as a whole."""
    return made(Directory, **{**dict(directory), **fields})


def differences(old: Directory | None, new: Directory) -> Iterator[str]:
    """Yield, in words, what a signer puts their name to; keys by the digest that people compare."""
    if old is None or old.coordinator_log_key != new.coordinator_log_key:
        yield f"the coordinator's log key is {key_digest(new.coordinator_log_key)}"
    for field, name in _LISTS.values():
        before = {} if old is None else {getattr(one, name): one for one in getattr(old, field)}
        after = {getattr(one, name): one for one in getattr(new, field)}
        yield from (f"added {_told(after[key])}" for key in after.keys() - before.keys())
        yield from (f"removed {title(before[key])}" for key in before.keys() - after.keys())
        yield from (f"changed {_told(after[key])}" for key in before.keys() & after.keys() if before[key] != after[key])
    past = set() if old is None else set(old.witnesses)
    yield from (f"added witness {node}" for node in set(new.witnesses) - past)
    yield from (f"removed witness {node}" for node in past - set(new.witnesses))


def _told(entry: Entry) -> str:
    """Return an entry with all that it says: a draft comes from hand to hand, and who signs it sees this."""
    match entry:
        case DirectoryPerson():
            told = [entry.organisation, *entry.roles, *(f"at {node}" for node in entry.nodes)]
            told.append(f"key {key_digest(entry.signing_key)}")
            if entry.recipient_key is not None:
                told.append(f"reads with key {key_digest(entry.recipient_key)}")
        case DirectoryNode():
            told = [entry.organisation, f"key {key_digest(entry.signing_key)}"]
            told.append(f"agreement key {key_digest(entry.agreement_key)}")
        case DirectoryProject():
            told = [*entry.researchers, *entry.datasets, *entry.analyses, f"until {entry.valid_until.isoformat()}"]
            told.append("summaries sealed" if entry.sealed else "summaries not sealed")
        case PassportIssuer():
            jwks = json.dumps(dict(entry.jwks), sort_keys=True).encode()
            told = [f"{len(entry.jwks.get('keys', ()))} keys, {digest(jwks)}"]
    return f"{title(entry)}: {', '.join(told)}"


def _not_there(kind: str, name: str) -> HansaError:
    return HansaError(Reason.DIRECTORY_INVALID, f"The directory has no {kind} {name[:80]!a}.", field=kind)
