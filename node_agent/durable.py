"""Files that are there whole or not at all; what both sides share has the code."""

from __future__ import annotations

from hansa.runtime.durable import sweep_parts, sync_folder, write_durably

__all__ = ["sweep_parts", "sync_folder", "write_durably"]
