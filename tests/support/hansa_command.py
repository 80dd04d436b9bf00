"""Runs the real ``hansa`` command as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).parent / "hansa"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)

    @property
    def reason(self) -> str:
        """The reason of the error line."""
        return self.err.splitlines()[-1].split(": ")[1] if self.err.startswith("error: ") else ""


async def start(*arguments: str | Path, profile: Path) -> asyncio.subprocess.Process:
    """Start ``hansa`` with ``arguments`` under ``profile``."""
    environment = {**os.environ, "HANSA_PROFILE": str(profile)}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        PROGRAM, *map(str, arguments), env=environment, stdin=pipe, stdout=pipe, stderr=pipe
    )


async def ended(process: asyncio.subprocess.Process, typed: str = "") -> Ended:
    """Return how ``process`` ended, having typed ``typed`` and closed its stdin."""
    out, err = await asyncio.wait_for(process.communicate(typed.encode()), timeout=60)
    return Ended(process.returncode or 0, out.decode(), err.decode())


async def hansa(*arguments: str | Path, profile: Path, typed: str = "") -> Ended:
    """Run ``hansa`` to its end."""
    return await ended(await start(*arguments, profile=profile), typed)
