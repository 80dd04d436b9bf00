"""When a certificate is renewed: a date, not a dice roll."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final

_HALF: Final = 0.5
_SPREAD: Final = 0.05  # of the lifetime, either side of its half


def renew_at(serial: int, not_before: datetime, not_after: datetime) -> datetime:
    """Return the moment (UTC) from which the holder of ``serial`` should renew.

    The moment lies between 45 % and 55 % of the lifetime. It is drawn from the
    serial number, not at each check: an agent that checks every few seconds and
    draws anew each time renews almost at once when the window opens, and a
    hundred agents enrolled on one afternoon renew together.
    """
    digest = hashlib.sha256(str(serial).encode()).digest()
    unit = int.from_bytes(digest[:8]) / 2**64  # uniform in [0, 1)
    share = _HALF - _SPREAD + 2 * _SPREAD * unit
    return not_before + (not_after - not_before) * share
