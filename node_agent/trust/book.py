"""The verified state of the trust repository that is in force at this node."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError, Reason
from hansa.trust.view import TrustView
from node_agent.audit.entries import trust_in_force
from node_agent.audit.log import append
from node_agent.store.models import TrustRow

_ONLY_ROW: Final = 1
_TICK: Final = timedelta(seconds=1)


@dataclass(slots=True)
class TrustBook:
    """The view in force, and how the last attempt at a newer one went. Only the agent's loop changes it."""

    view: TrustView | None = None
    checked_at: datetime | None = None
    fault: str = ""

    def current(self) -> TrustView | None:
        """Return the view in force; None before the first was verified."""
        return self.view

    @property
    def directory_version(self) -> int:
        """The version of the directory in force; 0 without one."""
        return 0 if self.view is None else self.view.directory.version

    def standing(self) -> dict[str, Any]:
        """Return how trust stands, for ``hansa-node status``."""
        return {
            "directory_version": self.directory_version,
            "expires": None if self.view is None else self.view.expires.isoformat(),
            "checked_at": None if self.checked_at is None else self.checked_at.isoformat(),
            "fault": self.fault,
        }


def advance_trust(session: Session, view: TrustView, now: datetime) -> bool:
    """Note in the caller's transaction that ``view`` comes into force; return whether it is a new one.

    The store remembers the newest directory, so that an older one stays out
    also where the metadata's folder was lost or replaced.

    Raises:
        HansaError: ``TRUST_ROLLBACK``; nothing was noted.
    """
    row = session.get(TrustRow, _ONLY_ROW)
    version = view.directory.version
    if row is not None and (version < row.directory_version or view.targets_version < row.targets_version):
        raise HansaError(Reason.TRUST_ROLLBACK, log=f"directory {version}, known {row.directory_version}")
    if row is not None and (version, view.targets_version) == (row.directory_version, row.targets_version):
        row.checked_at = max(row.checked_at, min(now, view.expires - _TICK))
        return False
    if row is None:
        row = TrustRow(id=_ONLY_ROW)
        session.add(row)
    row.directory_version, row.targets_version = version, view.targets_version
    row.checked_at = min(now, view.expires - _TICK)
    append(session, trust_in_force(view), now)
    return True


def last_checked(session: Session) -> datetime | None:
    """Return a time at which what is in force was valid; None where nothing ever was."""
    row = session.get(TrustRow, _ONLY_ROW)
    return None if row is None else row.checked_at
