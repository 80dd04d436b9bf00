"""What the nemesis breaks with does what it says: wires are cut one way, bytes are changed, frames repeated."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.local.layout import REPOSITORY, Layout
from node_agent.config import StateFolder
from tests.fault.nemesis import Settings
from tests.support.nemesis_clocks import Clocks, has_compiler
from tests.support.nemesis_faults import KINDS, Nemesis
from tests.support.nemesis_federation import NODES, Federation
from tests.support.nemesis_proxy import ByteProxy, FrameProxy
from tests.support.nemesis_world import Network, may_have_namespaces

_MOST_SECONDS = 60.0
_DAY = 86_400
# Waits in all ways that a daemon waits in; a wait that took the clock's day would not end.
_TELL_THE_TIME = """
import asyncio, sys, threading, time
for _ in sys.stdin:
    time.sleep(0.01)
    threading.Event().wait(0.01)
    asyncio.run(asyncio.sleep(0.01))
    print(time.time(), time.monotonic(), flush=True)
"""


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield int(server.sockets[0].getsockname()[1])
    server.close()


async def _through(proxy: ByteProxy, said: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(said)
        async with asyncio.timeout(_MOST_SECONDS):
            return await reader.readexactly(len(said))
    except asyncio.IncompleteReadError as error:
        return error.partial
    except OSError:
        return b""
    finally:
        writer.transport.abort()


async def test_bytes_pass_until_they_are_changed_or_cut(echo: int) -> None:
    proxy = await ByteProxy.listen("127.0.0.1", ("127.0.0.1", echo))
    try:
        assert await _through(proxy, b"0123456789") == b"0123456789"
        proxy.corrupt = 1
        changed = await _through(proxy, b"0123456789")
        assert (changed[:5], changed[6:]) == (b"01234", b"6789")
        assert changed[5:6] != b"5"
        proxy.cut = 1
        assert len(await _through(proxy, b"0123456789")) < 10
        assert await _through(proxy, b"0123456789") == b"0123456789"
    finally:
        await proxy.close()


async def test_frames_are_repeated_and_swapped_and_none_is_lost(tmp_path: Path) -> None:
    proxy = FrameProxy("nowhere:1", tmp_path, StateFolder(tmp_path), repeat=1)

    async def frames() -> AsyncIterator[bytes]:
        for number in range(4):
            yield bytes([number])

    assert [frame[0] async for frame in proxy._disturbed(frames())] == [0, 0, 1, 2, 3]
    proxy.swap = 1
    assert [frame[0] async for frame in proxy._disturbed(frames())] == [1, 0, 2, 3]
    assert [frame[0] async for frame in proxy._disturbed(frames())] == [0, 1, 2, 3]


def test_every_kind_of_fault_can_be_done() -> None:
    assert KINDS.keys() == Nemesis._strikes(Nemesis.__new__(Nemesis)).keys()


def test_what_is_spared_is_never_picked() -> None:
    wish = Settings.parse(["--spare", "broker", "--spare", "agent"]).wish()
    nemesis = Nemesis(Federation(Layout(Path("/nowhere")), Network(NODES), random.Random(1)), random.Random(2), wish)
    picked = {nemesis._some_part().kind for _ in range(1000)}
    assert picked == {"coordinator", "worker", "run pool", "rule pool", "sandbox"}


# Run in namespaces of its own: who hears whom, by way of the cut.
_WIRES = """
import socket, subprocess, sys
from tests.support.nemesis_world import HUB, Cut, Network, at_node

SEND = "import socket,sys; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', (sys.argv[1], 7))"
HEAR = "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 7)); print('up', flush=True); " \\
       "print(s.recvfrom(1)[0])"

def hears(sender, receiver, address, wanted):
    ear = subprocess.Popen([*receiver, sys.executable, "-c", HEAR], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    ear.stdout.readline()
    # What shall be heard may take its time; what shall not is tried three times.
    for _ in range(60 if wanted else 3):
        subprocess.run([*sender, sys.executable, "-c", SEND, address], check=False, stderr=subprocess.DEVNULL)
        try:
            ear.wait(0.5)
            break
        except subprocess.TimeoutExpired:
            continue
    ear.kill()
    return b"x" in ear.communicate()[0]

network = Network(["A", "B"])
network.build()
node = at_node("A")
both = lambda out, back: (hears(node, [], HUB, out), hears([], node, "10.77.0.10", back))
print("whole", *both(True, True))
for way in Cut:
    network.cut("A", way)
    print(way, *both(way == "in", way == "out"))
    network.mend("A")
network.unplug("A")
print("unplugged", *both(False, False))
network.plug("A")
print("mended", *both(True, True))
"""


@pytest.mark.slow
def test_a_wire_is_cut_the_way_that_was_asked_and_mends() -> None:
    if not may_have_namespaces():
        pytest.skip("network namespaces need root")
    wrap = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*wrap, sys.executable, "-c", _WIRES], check=True, capture_output=True, text=True, cwd=REPOSITORY
    )
    # From the node to the coordinator, and back.
    assert done.stdout.splitlines() == [
        "whole True True",
        "both False False",
        "in True False",
        "out False True",
        "unplugged False False",
        "mended True True",
    ]


@pytest.mark.slow
def test_a_full_disk_takes_not_one_byte_more_until_it_is_freed() -> None:
    if not may_have_namespaces():
        pytest.skip("file systems of their own need root")
    script = (
        "import subprocess; from pathlib import Path; from tests.support.nemesis_faults import fill\n"
        "from tests.support.nemesis_world import mount_memory\n"
        "folder = Path('/tmp/hansa-full'); folder.mkdir(exist_ok=True); mount_memory(folder, 4)\n"
        "fill(folder / 'ballast')\n"
        "try: (folder / 'one').write_bytes(b'x')\n"
        "except OSError as error: print(error.errno)\n"
        "(folder / 'ballast').unlink(); (folder / 'one').write_bytes(b'x'); print('free')\n"
        "subprocess.run(['umount', str(folder)], check=True); folder.rmdir()\n"
    )
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.stdout.split() == ["28", "free"]


def test_a_stepped_clock_moves_the_wall_clock_at_once_and_neither_the_monotonic_one_nor_a_wait(tmp_path: Path) -> None:
    if not has_compiler():
        pytest.skip("the clocks need a C compiler")
    clocks = Clocks.build(tmp_path / "clocks")
    with subprocess.Popen(
        [sys.executable, "-c", _TELL_THE_TIME],
        env={**os.environ, **clocks.environment("FI")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for ahead in (0, _DAY, -_DAY):
            clocks.set("FI", ahead)
            process.stdin.write("\n")
            process.stdin.flush()
            wall, monotonic = map(float, process.stdout.readline().split())
            assert abs(wall - ahead - time.time()) < _MOST_SECONDS
            assert abs(monotonic - time.monotonic()) < _MOST_SECONDS
        process.stdin.close()
    assert process.returncode == 0
