"""Sizes and times that both sides enforce."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

PROTOCOL_VERSION: Final = 1

MESSAGE_BYTES: Final = 1 << 20
CHUNK_BYTES: Final = 256 << 10
JOB_BYTES: Final = 64 << 10
MANIFEST_BYTES: Final = 64 << 10
SUMMARY_BYTES: Final = 64 << 20
CSR_BYTES: Final = 8 << 10

MAX_PAGE: Final = 200
DEFAULT_PAGE: Final = 50
MAX_NODES: Final = 100
# That one node may offer.
MAX_DATASETS: Final = 1_000
MAX_VARIANTS: Final = 10_000

TOKEN_LIFE: Final = timedelta(seconds=60)
# Clocks that differ by more than the first are warned of, by more than the second take no new work.
CLOCK_WORTH_A_WORD: Final = timedelta(seconds=30)
CLOCK_TOLERANCE: Final = timedelta(minutes=5)
MAX_DEADLINE: Final = timedelta(days=366)

HEARTBEAT: Final = timedelta(seconds=5)
SESSION_SILENCE: Final = timedelta(seconds=30)
EVENT_WINDOW: Final = 64
COMMAND_WINDOW: Final = 16
