"""The public commands, run in forks of a process that has imported them.

A federation is set up by some eighty commands, of which each spends a second
of the processor on imports. What a command does is the same here: it gets its
words, its environment and its output in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final
from unittest import mock

from deploy.local import ceremony, commands

_PROGRAMS: Final = {
    "hansa": "hansa.cli.main",
    "hansa-node": "node_agent.cli.main",
    "hansa-coordinator": "coordinator.cli.main",
}
_PRELOADED: Final = (
    *_PROGRAMS.values(),
    *(f"hansa.cli.{name}" for name in ("admin", "analysis", "catalogue", "key", "trust")),
    *(f"node_agent.cli.{name}" for name in ("approvals", "datasets", "inspection", "policies", "setup")),
    "hansa.sdk.client",
    "node_agent.cli.signing",
    "node_agent.local_api.client",
    "node_agent.staging.importer",
)
_COMMAND_SECONDS: Final = 300


@contextmanager
def warm_commands() -> Iterator[None]:
    """Have ``deploy.local`` call the commands this way for as long as the context lasts.

    Entered before this process has threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED, __name__])

    def call(program: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        with tempfile.TemporaryDirectory() as folder:
            files = _Files(Path(folder))
            values = {**commands.environment(), **(env or {})}
            process = context.Process(target=_run, args=(program, arguments, values, files))
            process.start()
            process.join(_COMMAND_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
            # Not ``exitcode``: two threads that look for it at once may each miss it.
            status = _read(files.status) or "killed"
            if status != "0":
                why = _read(files.err).strip() or _read(files.out).strip() or f"exit code {status}"
                raise commands.CommandError(f"`{program} {' '.join(arguments[:4])} …` failed: {why}")
            return _read(files.out)

    with mock.patch.object(commands, "call", call), mock.patch.object(ceremony, "call", call):
        yield


@dataclass(frozen=True, slots=True)
class _Files:
    """Where a command leaves what it said and how it ended."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def err(self) -> Path:
        return self.folder / "err"

    @property
    def status(self) -> Path:
        return self.folder / "status"


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _run(program: str, arguments: tuple[str, ...], env: Mapping[str, str], files: _Files) -> None:
    for path, descriptor in ((files.out, 1), (files.err, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [program, *arguments]
    status: object = 0
    try:
        import_module(_PROGRAMS[program]).main()
    except SystemExit as ended:
        status = ended.code or 0
    files.status.write_text(str(status))
