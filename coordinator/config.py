"""``coordinator.toml`` in the state folder: read once, checked whole."""

from __future__ import annotations

import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy.engine import make_url

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import FEDERATION_NAME
from hansa.contract.margins import MIB, Margins
from hansa.runtime.space import Space

FILE: Final = "coordinator.toml"
CA_FOLDER: Final = "ca"
SERVER_CA_FILE: Final = "server-ca.pem"
_DATABASE_FILE: Final = "coordinator.db"

Port = Annotated[int, Field(ge=1, le=65535)]
_HOST: Final = r"^[A-Za-z0-9.:-]{1,253}$"
Host = Annotated[str, Field(pattern=_HOST)]


class Config(BaseModel):
    """The settings of one coordinator. ``host`` is where clients find it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    federation: str = Field(pattern=f"^{FEDERATION_NAME.pattern}$")
    host: Host = "127.0.0.1"
    # Where the servers listen; ``host`` when empty.
    listen: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]{0,253}$")] = ""
    people_port: Port = 7443
    enrolment_port: Port = 7444
    node_port: Port = 7445
    # Other names under which clients reach the servers.
    names: tuple[Host, ...] = ()
    # sqlite:///PATH or postgresql+psycopg://…; a file in the state folder when empty.
    database: str = ""
    node_certificate_hours: int = Field(default=168, ge=1, le=24 * 90)
    # How long the result of an ended job is kept, with the summaries that it was made of; 0: for ever.
    result_days: int = Field(default=0, ge=0, le=36600)
    # MiB of the disk that are held back for what must be written on a full one, and what must be free for new work.
    reserve_mib: int = Field(default=64, ge=1, le=1 << 20)
    free_mib: int = Field(default=128, ge=1, le=1 << 20)

    @model_validator(mode="after")
    def _ports_differ(self) -> Config:
        if len({self.people_port, self.enrolment_port, self.node_port}) != 3:  # noqa: PLR2004 - three listeners
            raise ValueError("people_port, enrolment_port and node_port must differ")
        return self

    def endpoint(self, port: int) -> str:
        """Return ``host:port`` as clients write it."""
        return _join(self.host, port)

    def address(self, port: int) -> str:
        """Return where a server listens."""
        return _join(self.listen or self.host, port)

    @property
    def node_certificate_life(self) -> timedelta:
        """How long a node's certificate is valid."""
        return timedelta(hours=self.node_certificate_hours)

    @property
    def server_names(self) -> tuple[str, ...]:
        """All names in the servers' certificate."""
        return tuple(dict.fromkeys(("localhost", "127.0.0.1", self.host, *self.names)))

    def database_url(self, state_dir: Path) -> str:
        """Return the database's URL."""
        return self.database or f"sqlite:///{state_dir.resolve() / _DATABASE_FILE}"

    def space(self, state_dir: Path) -> Space:
        """Return the room on the store's disk, which is ours to keep where the store is a file."""
        place = make_url(self.database_url(state_dir))
        here = Path(place.database or "").parent if place.get_backend_name() == "sqlite" else None
        return Space(here, Margins(self.reserve_mib * MIB, self.free_mib * MIB))

    def to_toml(self) -> str:
        """Return the file's text; settings at their default are left out."""
        lines = [f"{name} = {_toml(value)}" for name, value in self.model_dump(exclude_defaults=True).items()]
        return "\n".join(lines) + "\n"


def make_config(**settings: object) -> Config:
    """Return the settings, checked.

    Raises:
        HansaError: ``CONFIG_INVALID``, naming the first setting at fault.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "ports"
        raise HansaError(Reason.CONFIG_INVALID, f"{field}: {first['msg']}", field=field) from error


def load_config(state_dir: Path) -> Config:
    """Return the settings of the coordinator in ``state_dir``.

    Raises:
        HansaError: ``STATE_FOLDER_INVALID``, there is no coordinator;
            ``CONFIG_INVALID``, the file is not valid.
    """
    path = state_dir / FILE
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise HansaError(
            Reason.STATE_FOLDER_INVALID,
            f"{state_dir} holds no coordinator; make one with `hansa-coordinator init {state_dir}`.",
        ) from error
    except (OSError, ValueError) as error:
        raise HansaError(Reason.CONFIG_INVALID, f"{path} cannot be read as TOML.") from error
    names = raw.get("names")
    # TOML has arrays; the settings are immutable.
    return make_config(**{**raw, **({"names": tuple(names)} if isinstance(names, list) else {})})


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)
