"""``make nemesis``: real processes, seeded faults, and every promise checked after each round.

`python -m tests.fault.nemesis [--faults N] [--seed N] [--database sqlite|postgresql] …`; the report lies in
`.cache/nemesis`, and says what was done so far also when the run is stopped. Exit status 1: a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from deploy.local.demo_data import prepare
from deploy.local.layout import REPOSITORY
from tests.support.nemesis_clocks import Clocks, has_compiler
from tests.support.nemesis_faults import KINDS, Wish
from tests.support.nemesis_report import Report
from tests.support.nemesis_round import Arena
from tests.support.nemesis_world import become_child, inside_command, is_inside, may_have_namespaces, mount_memory
from tests.support.postgres import private_postgres

_MODULE: Final = "tests.fault.nemesis"
_WORLD_MIB: Final = 2048
_THREADS: Final = 32


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asked for."""

    faults: int
    seed: int
    database: str
    broker: str
    clocks: bool
    drills: int
    round: int
    longest: float
    reports: Path
    kinds: frozenset[str]
    spared: frozenset[str]
    lifetime: float

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Settings:
        """Read the command line."""
        parser = argparse.ArgumentParser(prog="nemesis", description=__doc__)
        parser.add_argument("--faults", type=int, default=1000)
        parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
        parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
        parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
        parser.add_argument("--clocks", action="store_true", help="step wall clocks too; needs a C compiler")
        parser.add_argument("--round", type=int, default=50, help="faults before everything is healed and checked")
        parser.add_argument("--drills", type=int, default=0, help="measure recovery so often after each round")
        parser.add_argument("--longest", type=float, default=60.0, help="seconds of the longest freeze or cut")
        parser.add_argument("--lifetime", type=float, default=300.0, help="seconds until a job's deadline")
        parser.add_argument("--reports", type=Path, default=REPOSITORY / ".cache" / "nemesis")
        parser.add_argument(
            "--kind", action="append", default=[], choices=KINDS, help="only this kind of fault; may be repeated"
        )
        parser.add_argument("--spare", action="append", default=[], metavar="PART", help="leave such processes alone")
        got = parser.parse_args(arguments)
        seed = secrets.randbelow(2**31) if got.seed is None else got.seed
        return cls(
            faults=got.faults,
            seed=seed,
            database=got.database,
            broker=got.broker,
            clocks=got.clocks or "clock stepped" in got.kind,
            drills=got.drills,
            round=got.round,
            longest=got.longest,
            reports=got.reports.absolute(),
            kinds=frozenset(got.kind),
            spared=frozenset(got.spare),
            lifetime=got.lifetime,
        )

    def wish(self) -> Wish:
        """Return how bad it may get."""
        length = (min(3.0, self.longest), self.longest)
        full = (min(2.0, self.longest), min(6.0, self.longest))
        return Wish(freeze=length, cut=length, full=full, kinds=self.kinds, spared=self.spared)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return 1 if a promise was broken."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not is_inside():
        return _go_inside(given)
    become_child()
    settings = Settings.parse(given)
    report = Report(settings.seed, settings.database, settings.broker, shlex.join([_MODULE, *given]))
    _tell(f"nemesis: seed {settings.seed}, {settings.faults} faults, {settings.database}, {settings.broker}")
    with tempfile.TemporaryDirectory(prefix="hansa-nemesis-", dir="/tmp") as folder:
        place = Path(folder)
        mount_memory(place, _WORLD_MIB)
        try:
            with suppress(KeyboardInterrupt):
                _run(settings, report, place)
        finally:
            if report.violations or sys.exc_info()[0] is not None:
                _keep_logs(place, settings)
            subprocess.run(["umount", "-R", "-l", str(place)], check=False)
    _tell(report.text())
    return 1 if report.violations or not report.rounds else 0


def _tell(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _go_inside(given: list[str]) -> int:
    if not may_have_namespaces():
        sys.stderr.write("The nemesis needs root and network namespaces.\n")
        return 2
    if Settings.parse(given).clocks and not has_compiler():
        sys.stderr.write("--clocks needs a C compiler: apt-get install gcc libc6-dev\n")
        return 2
    prepare(REPOSITORY / ".cache")
    process = subprocess.Popen(inside_command(_MODULE, given), cwd=REPOSITORY)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # It was told too, and writes its report.
            continue


def _run(settings: Settings, report: Report, place: Path) -> None:
    with ExitStack() as stack:
        postgres = stack.enter_context(private_postgres()) if settings.database == "postgresql" else None
        data, rabbit = REPOSITORY / ".cache" / "demo-data", settings.broker == "rabbitmq"
        arena = Arena.build(place / "federation", data, settings.seed, postgres=postgres, rabbit=rabbit)
        if settings.clocks:
            arena.federation.clocks = Clocks.build(place / "clocks")
        arena.plan.lifetime = timedelta(seconds=settings.lifetime)
        asyncio.run(_rounds(arena, settings, report))


async def _rounds(arena: Arena, settings: Settings, report: Report) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
    begun = time.monotonic()
    draw = random.Random(settings.seed)
    try:
        await arena.open(draw, settings.wish(), _say(begun))
        _tell(f"[{time.monotonic() - begun:6.1f} s] the federation stands")
        while sum(report.faults.values()) < settings.faults or not report.rounds:
            count = min(settings.round, settings.faults - sum(report.faults.values()))
            await arena.round(count, report, settings.drills)
            report.seconds = time.monotonic() - begun
            written = report.write(settings.reports)
            done = sum(report.faults.values())
            _tell(
                f"[{report.seconds:6.1f} s] round {report.rounds}: {done} faults, {sum(report.jobs.values())} jobs, "
                f"{len(report.violations)} violations; {written}"
            )
    finally:
        await arena.close()


def _say(begun: float) -> Callable[[str], None]:
    return lambda words: _tell(f"[{time.monotonic() - begun:6.1f} s] {words}")


def _keep_logs(place: Path, settings: Settings) -> None:
    kept = settings.reports / f"{settings.seed}-kept"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for path in (*place.rglob("*.log"), *place.rglob("*.db"), *place.rglob("*.db-wal")):
        if path.is_file():
            shutil.copyfile(path, kept / "-".join(path.relative_to(place).parts))


if __name__ == "__main__":
    sys.exit(main())
