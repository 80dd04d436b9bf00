"""Runs the ``hansa`` command: within this process, or as one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from hansa.cli.main import cli

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
        """The reason of the error, whichever form it has."""
        last = self.err.splitlines()[-1]
        return last.split(": ")[1] if last.startswith("error: ") else str(json.loads(last)["error"]["reason"])


def hansa(*arguments: str | Path, profile: Path, typed: str = "") -> Ended:
    """Run ``hansa`` to its end within this process: real but for the interpreter's start."""
    result = CliRunner().invoke(cli, [str(one) for one in arguments], input=typed, env=environment(profile))
    return Ended(result.exit_code, result.stdout, result.stderr)


def start(*arguments: str | Path, profile: Path) -> subprocess.Popen[str]:
    """Start ``hansa`` as a process of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [PROGRAM, *map(str, arguments)],
        env={**os.environ, **environment(profile)},
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> Ended:
    """Return how ``process`` ended, its stdin closed."""
    out, err = process.communicate(timeout=60)
    return Ended(process.returncode, out, err)


def environment(profile: Path) -> dict[str, str]:
    """Return the variables that make ``profile`` the one in use."""
    return {"HANSA_PROFILE": str(profile), "GRPC_VERBOSITY": "NONE"}
