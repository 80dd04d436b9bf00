"""The profile: which federation, which coordinator, and as whom.

A small TOML file. Unknown keys are errors, and relative paths are relative to
the file, so that a folder with a profile, a key and a CA can be moved whole.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import FEDERATION_NAME, PERSON_NAME

ENVIRONMENT_VARIABLE: Final = "HANSA_PROFILE"
_ENDPOINT: Final = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]{1,253}):(?P<port>[0-9]{1,5})")
_MAX_PORT: Final = 65535
_PROFILE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Whom to call, whom to trust, and as whom to speak.

    Attributes:
        federation: the name that every token is bound to.
        endpoint: ``host:port`` of the coordinator's listener for people.
        ca_file: the CA of the coordinator's servers, PEM; the only one trusted.
        person: the caller's name in the federation's directory.
        key_file: the person's Ed25519 private key.
        trust_root: the root metadata of the trust repository that the person
            pinned; beside it, in ``.trust``, lies what was verified with it.
    """

    federation: str
    endpoint: str
    ca_file: Path
    person: str
    key_file: Path
    trust_root: Path

    def to_toml(self) -> str:
        """Return the profile as the text of a profile file."""
        return "".join(f"{name} = {_quoted(str(getattr(self, name)))}\n" for name in _NAMES)


_NAMES: Final = tuple(field.name for field in fields(Profile))


def find_profile(explicit: Path | None, environment: Mapping[str, str]) -> Path:
    """Return the path of the profile that is meant, whether or not it is there.

    An explicit path goes before ``HANSA_PROFILE``, and that before the
    ``hansa/profile.toml`` of the user's configuration folder.
    """
    if explicit is not None:
        return explicit
    if named := environment.get(ENVIRONMENT_VARIABLE):
        return Path(named)
    import platformdirs  # only here: most calls name their profile

    return platformdirs.user_config_path("hansa") / "profile.toml"


def load_profile(path: Path) -> Profile:
    """Return the profile in the file ``path``.

    Raises:
        HansaError: ``CONFIG_INVALID``; the file cannot be read, is no TOML, or
            has a key too many, too few or with a wrong value (``field``).
    """
    try:
        with path.open("rb") as file:
            data = file.read(_PROFILE_BYTES)
    except OSError as error:
        raise HansaError(
            Reason.CONFIG_INVALID,
            f"The profile {path} cannot be read ({error.strerror}); pass --profile or set {ENVIRONMENT_VARIABLE}.",
            field="profile",
        ) from error
    return parse_profile(data, path.absolute().parent)


def parse_profile(data: bytes, folder: Path) -> Profile:
    """Return the profile in ``data``; relative paths are taken from ``folder``.

    Raises:
        HansaError: ``CONFIG_INVALID``.
    """
    try:
        raw = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HansaError(Reason.CONFIG_INVALID, f"The profile is not TOML: {error}.", field="profile") from error
    for name in raw:
        if name not in _NAMES:
            raise _invalid(name[:40], f"has an unknown key {name[:40]!a}; it has: {', '.join(_NAMES)}")
    texts = {name: _text(raw, name) for name in _NAMES}
    if not FEDERATION_NAME.fullmatch(texts["federation"]):
        raise _invalid("federation", "names no federation (lower-case letters, digits, '.' and '-')")
    if not PERSON_NAME.fullmatch(texts["person"]):
        raise _invalid("person", "names no person (lower-case letters, digits, '.', '_' and '-')")
    place = _ENDPOINT.fullmatch(texts["endpoint"])
    if place is None or not 0 < int(place["port"]) <= _MAX_PORT:
        raise _invalid("endpoint", "has an endpoint that is not host:port")
    return Profile(
        federation=texts["federation"],
        endpoint=texts["endpoint"],
        ca_file=_path(texts["ca_file"], folder),
        person=texts["person"],
        key_file=_path(texts["key_file"], folder),
        trust_root=_path(texts["trust_root"], folder),
    )


def _text(raw: Mapping[str, object], name: str) -> str:
    value = raw.get(name)
    if value is None:
        raise _invalid(name, f"lacks {name}")
    if not isinstance(value, str) or not value or "\0" in value:
        raise _invalid(name, f"has a {name} that is not a text")
    return value


def _path(text: str, folder: Path) -> Path:
    try:
        return folder / Path(text).expanduser()
    except RuntimeError as error:  # "~somebody" who is not there
        raise _invalid("key_file", f"names a home folder that is not there: {text[:60]!a}") from error


def _invalid(field: str, words: str) -> HansaError:
    return HansaError(Reason.CONFIG_INVALID, f"The profile {words}.", field=field)


def _quoted(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(char):04x}" if ord(char) < ord(" ") or char in '"\\\x7f' else char  # TOML's basic strings
        for char in text
    )
    return f'"{escaped}"'
