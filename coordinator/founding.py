"""How a coordinator begins: a state folder with keys, settings, and a store with the federation's trust repository.

All of it, or nothing: it is made beside its place and moved there at the end.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import delete
from sqlalchemy.orm import Session

from coordinator.ca.files import create_keys
from coordinator.config import CA_FOLDER, FILE, SERVER_CA_FILE, Config
from coordinator.services.nodes import Act
from coordinator.services.trust import begin_trust
from coordinator.store.database import Database
from coordinator.store.federation import create_federation, read_federation
from coordinator.store.people_models import AnalysisRow, AuditLeafRow, AuditNodeRow, AuditRow, FederationRow, PersonRow
from coordinator.store.schema import migrate
from coordinator.store.trust_models import TrustMetadataRow, TrustStateRow, TrustTargetRow
from coordinator.trust_keys import TrustKeys, write_trust
from hansa.contract.errors import HansaError, Reason
from hansa.trust.files import ROOT, RepositoryFiles

_FOUNDER = "init"


@dataclass(frozen=True, slots=True)
class Founding:
    """What begins, where, and by whose signatures."""

    state_dir: Path
    config: Config
    trust: RepositoryFiles
    keys: TrustKeys


def found(founding: Founding, *, store_uuid: str, now: datetime) -> None:
    """Make the coordinator's state folder and its store.

    Args:
        founding: checked settings, the trust repository, and the keys that it names.
        store_uuid: names the new store; random.
        now: aware UTC time.

    Raises:
        HansaError: ``STATE_FOLDER_INVALID``, the folder or the database is in
            use; ``CONFIG_INVALID``, the database cannot be reached;
            ``TRUST_…``, ``DIRECTORY_INVALID`` or ``KEY_INVALID``, the
            repository is not valid or names other keys.
    """
    place = founding.state_dir.absolute()
    check_free(place)
    part = place.parent / f".{place.name}.init-{store_uuid[:8]}"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for left in place.parent.glob(f".{place.name}.init-*"):
            # Of an `init` that was killed: it holds the keys of authorities that nobody will know.
            shutil.rmtree(left)
        part.mkdir(mode=0o700)
        _make(part, founding, store_uuid, now)
        _move(part, place, founding.config)
    except OSError as error:
        raise HansaError(
            Reason.STATE_FOLDER_INVALID, f"{place} cannot be made: {error.strerror}.", field="state_dir"
        ) from error
    finally:
        # After the move there is nothing here; after a failure, all of it goes.
        if part.exists():
            shutil.rmtree(part)


def check_free(state_dir: Path) -> None:
    """Return if ``state_dir`` does not exist or is an empty folder.

    Raises:
        HansaError: ``STATE_FOLDER_INVALID``.
    """
    if (state_dir / FILE).exists():
        words = f"{state_dir} holds a coordinator already; nothing was changed."
    elif os.path.lexists(state_dir) and not (state_dir.is_dir() and not any(state_dir.iterdir())):
        words = f"{state_dir} exists and is not an empty folder; nothing was changed."
    else:
        return
    raise HansaError(Reason.STATE_FOLDER_INVALID, words, field="state_dir")


def _make(folder: Path, founding: Founding, store_uuid: str, now: datetime) -> None:
    config = founding.config
    server_ca = create_keys(folder / CA_FOLDER, config.federation, names=config.server_names, now=now)
    (folder / SERVER_CA_FILE).write_bytes(server_ca.certificate_pem)
    write_trust(folder, founding.keys, founding.trust.metadata_file(ROOT))
    settings = folder / FILE
    settings.touch(mode=0o600)  # a database URL may hold a password
    settings.write_text(config.to_toml(), encoding="utf-8")
    database = Database.open(config.database_url(folder))
    try:
        migrate(database)
        database.run_sync(lambda session: _begin(session, founding, store_uuid, now))
    finally:
        database.close()


def _begin(session: Session, founding: Founding, store_uuid: str, now: datetime) -> None:
    present = read_federation(session)
    if present is not None:
        raise HansaError(
            Reason.STATE_FOLDER_INVALID,
            f"The database holds the federation {present.name} already; nothing was changed.",
            field="database",
        )
    create_federation(session, name=founding.config.federation, store_uuid=store_uuid)
    begin_trust(session, founding.trust, founding.keys.duty(founding.config.federation), Act(_FOUNDER, now))


def _move(part: Path, place: Path, config: Config) -> None:
    try:
        part.rename(place)
    except OSError:
        # The default store goes with the folder; another database outlives it.
        database = Database.open(config.database_url(part))
        try:
            database.run_sync(_withdraw)
        finally:
            database.close()
        raise


def _withdraw(session: Session) -> None:
    tables = (AuditNodeRow, AuditLeafRow, AuditRow, PersonRow, AnalysisRow, FederationRow)
    for table in (*tables, TrustStateRow, TrustTargetRow, TrustMetadataRow):
        session.execute(delete(table))
