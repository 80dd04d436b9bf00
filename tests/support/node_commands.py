"""``hansa-node`` as its users call it: a process with arguments, output and an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


def hansa_node(state: Path | None, *arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> Done:
    """Run ``hansa-node`` on ``state`` to its end."""
    options = [] if state is None else ["--state", str(state)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HANSA_")}
    done = subprocess.run(
        [sys.executable, "-c", "from node_agent.cli.main import main; main()", *options, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**kept, **(env or {})},
    )
    return Done(done.returncode, done.stdout, done.stderr)
