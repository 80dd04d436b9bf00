"""A list of people in one TOML file, for a directory that begins with many.

Each ``[[person]]`` has ``name``, ``organisation``, ``key`` (their .pub file),
``roles``, and where they have them ``nodes`` and ``recipient_key``. Paths are
relative to the file. Unknown keys are errors.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, StringConstraints, ValidationError

from hansa.contract.directory import DirectoryPerson, Role
from hansa.contract.errors import HansaError, Reason
from hansa.contract.raw_keys import key_text
from hansa.contract.strict import Strict
from hansa.sdk.keys import read_public_key, read_recipient_public_key

_FILE_BYTES: Final = 4 << 20
_Path = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class _Person(Strict):
    name: str
    organisation: str
    key: _Path
    recipient_key: _Path | None = None
    roles: tuple[Role, ...] = Field(min_length=1)
    nodes: tuple[str, ...] = ()


class _People(Strict):
    person: tuple[_Person, ...] = Field(min_length=1)


def read_people(path: Path) -> tuple[DirectoryPerson, ...]:
    """Return the people of the file ``path`` with the keys that it names.

    Raises:
        HansaError: ``FILE_INVALID``, the file cannot be read or is no such
            list; ``KEY_INVALID``; ``DIRECTORY_INVALID``, an entry of it.
    """
    try:
        with path.open("rb") as file:
            listed = _People.model_validate(tomllib.loads(file.read(_FILE_BYTES).decode()))
    except OSError as error:
        raise HansaError(Reason.FILE_INVALID, f"{path} cannot be read: {error.strerror}.", field="people") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise HansaError(Reason.FILE_INVALID, f"{path}: {field}: {first['msg']}.", field=field) from error
    except ValueError as error:
        raise HansaError(Reason.FILE_INVALID, f"{path} is not TOML: {error}.", field="people") from error
    return tuple(_entry(person, path.absolute().parent) for person in listed.person)


def _entry(person: _Person, folder: Path) -> DirectoryPerson:
    recipient = person.recipient_key
    try:
        return DirectoryPerson(
            name=person.name,
            organisation=person.organisation,
            signing_key=key_text(read_public_key(folder / person.key)),
            recipient_key=None if recipient is None else key_text(read_recipient_public_key(folder / recipient)),
            roles=tuple(dict.fromkeys(person.roles)),
            nodes=tuple(dict.fromkeys(person.nodes)),
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise HansaError(
            Reason.DIRECTORY_INVALID, f"The person {person.name[:64]!a}: {field}: {first['msg']}.", field=field
        ) from error
