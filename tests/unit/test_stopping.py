"""How a daemon ends, on processes of their own: the deadline ends this one otherwise."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hansa.runtime.stopping import CUT_SHORT

PATIENCE_SECONDS = 60.0

DAEMON = """
import asyncio, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from hansa.runtime.stopping import stop_on_signals

async def serve():
    stop = stop_on_signals("daemon", timedelta(seconds={seconds}))
    print("ready", flush=True)
    {body}

asyncio.run(serve())
"""
GOOD = "await stop.wait()"
BUSY_LOOP = "while True: pass"
STUCK_THREAD = "pool = ThreadPoolExecutor(1); pool.submit(threading.Event().wait); await stop.wait()"
ENDLESS_CLEANUP = "await stop.wait(); print('stopping', flush=True); await asyncio.Event().wait()"
WISH_WITHOUT_A_SIGNAL = "stop.set(); await asyncio.Event().wait()"


@contextmanager
def daemon(body: str, *, seconds: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", DAEMON.format(body=body, seconds=seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_an_end(number: signal.Signals) -> None:
    with daemon(GOOD, seconds=PATIENCE_SECONDS) as process:
        process.send_signal(number)
        assert ended(process) == (0, "")


@pytest.mark.parametrize("body", [BUSY_LOOP, STUCK_THREAD, ENDLESS_CLEANUP])
def test_whatever_hangs_the_process_has_ended_at_its_deadline_and_said_so(body: str) -> None:
    with daemon(body, seconds=0.3) as process:
        process.send_signal(signal.SIGTERM)
        code, errors = ended(process)
        assert code == CUT_SHORT
        line = json.loads(errors)
        assert (line["event"], line["process"]) == ("stop_deadline_passed", "daemon")


def test_the_deadline_counts_also_where_no_signal_came() -> None:
    with daemon(WISH_WITHOUT_A_SIGNAL, seconds=0.3) as process:
        assert ended(process)[0] == CUT_SHORT


def test_a_second_signal_does_not_wait() -> None:
    with daemon(ENDLESS_CLEANUP, seconds=10 * PATIENCE_SECONDS) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == -signal.SIGTERM
