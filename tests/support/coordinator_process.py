"""A real coordinator as processes: begun by ``init``, served by ``serve``."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from hansa.sdk.keys import create_key

PROGRAM = Path(sys.executable).parent / "hansa-coordinator"


@asynccontextmanager
async def serving_coordinator(folder: Path) -> AsyncIterator[Path]:
    """Yield the first operator's profile while a new coordinator in ``folder`` serves."""
    create_key(folder / "olga")
    people, enrolment, node = free_ports(3)
    state = folder / "coordinator"
    await _run(
        "init", state, "--federation", "demo", "--operator", "olga", "--operator-key", folder / "olga.pub",
        "--people-port", people, "--enrolment-port", enrolment, "--node-port", node,
    )  # fmt: skip
    profile = folder / "olga.toml"
    profile.write_bytes(await _run("profile", state, "--person", "olga", "--key", folder / "olga"))
    log = folder / "coordinator.log"
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(PROGRAM, "serve", state, stdout=sink, stderr=sink)
        try:
            await asyncio.wait_for(_until_listening(process, people, log), 60)
            yield profile
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), 30)


def profile_of(person: str, key: Path, operator: Path) -> Path:
    """Write ``person``'s profile beside ``key``, for the coordinator of ``operator``'s profile."""
    lines = operator.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("person", "key_file"))]
    path = key.with_name(f"{person}.toml")
    path.write_text("\n".join([*kept, f'person = "{person}"', f'key_file = "{key}"', ""]))
    return path


def free_ports(count: int) -> Sequence[int]:
    """Return ports of loopback that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


async def _run(*arguments: object) -> bytes:
    process = await asyncio.create_subprocess_exec(
        PROGRAM, *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    if process.returncode:
        raise RuntimeError(err.decode())
    return out


async def _until_listening(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    while True:
        if process.returncode is not None:
            raise RuntimeError(f"the coordinator ended; see {log}")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        await writer.wait_closed()
        return
