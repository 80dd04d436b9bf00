"""The coordinator's checkpoint that this person has verified last.

It lies beside what was verified of the trust repository, one file for each
root: a log that is rewritten or cut afterwards no longer continues it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hansa.contract.errors import HansaError, Reason
from hansa.contract.notes import NOTE_BYTES, parse_note
from hansa.runtime.durable import write_durably
from hansa.sdk.profile import Profile
from hansa.sdk.trust import read_trust_root, trust_folder

_FILE: Final = "coordinator.checkpoint"


def recall(profile: Profile) -> bytes | None:
    """Return the checkpoint; None if nothing was verified yet.

    Raises:
        HansaError: ``FILE_INVALID``; the file is damaged.
    """
    path = _path(profile)
    try:
        with path.open("rb") as file:
            data = file.read(NOTE_BYTES + 1)
        parse_note(data)
    except FileNotFoundError:
        return None
    except (OSError, HansaError) as error:
        raise HansaError(
            Reason.FILE_INVALID, f"{path} is not the checkpoint that was written there; look why.", field="checkpoint"
        ) from error
    return data


def remember(profile: Profile, note: bytes) -> None:
    """Keep ``note``, which was verified."""
    path = _path(profile)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, note)


def _path(profile: Profile) -> Path:
    folder = trust_folder(profile.trust_root, read_trust_root(profile.trust_root))
    return folder.with_name(f"{folder.name}.{_FILE}")
