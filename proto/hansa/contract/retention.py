"""How long an outbox keeps what was acknowledged.

The receiver may be restored from a backup, and then asks for what came after
it once more. So an entry stays for thirty days after its acknowledgement, and
a backup that is younger can be brought up to date.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

KEPT_AFTER_ACK: Final = timedelta(days=30)
# What a node may owe to a coordinator that is away; then it takes no new work. Nothing is ever dropped.
MOST_UNSENT_BYTES: Final = 1 << 30


def prune_below(*, head: int, acked: int, old: int) -> int:
    """Return the number below which an outbox may delete its entries.

    The last entry stays: the next one continues it. So does the last that was
    acknowledged, by which sender and receiver compare their histories, and the
    last that was acknowledged so long ago: the cursor of a receiver that is
    restored from its oldest good backup.

    Args:
        head: the number of the last entry; 0 for none.
        acked: the last one that is known to be acknowledged; 0 for none.
        old: the last one of those that were acknowledged longer ago than
            ``KEPT_AFTER_ACK``; 0 for none.
    """
    return min(head, acked, old)
