"""What every process relies on: waiting, supervision, logs."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC
from itertools import islice
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from hansa.runtime.backoff import delays
from hansa.runtime.channels import CLIENT_OPTIONS, PEOPLE_CLIENT_OPTIONS, SERVER_OPTIONS
from hansa.runtime.clock import utc_now
from hansa.runtime.logging import set_up_logging, strike_secrets
from hansa.runtime.supervisor import run_all


@given(st.floats(0, 1, exclude_max=True), st.floats(0.01, 10), st.floats(0.01, 100))
def test_each_delay_lies_between_half_its_step_and_the_whole(draw: float, first: float, most: float) -> None:
    step = first
    for delay in islice(delays(lambda: draw, first=first, most=most), 20):
        assert step / 2 <= delay <= step
        step = min(2 * step, most)


def test_the_clock_is_aware() -> None:
    assert utc_now().tzinfo is UTC


def test_each_side_takes_what_the_other_may_send() -> None:
    server, node, people = dict(SERVER_OPTIONS), dict(CLIENT_OPTIONS), dict(PEOPLE_CLIENT_OPTIONS)
    sent, taken = "grpc.max_send_message_length", "grpc.max_receive_message_length"
    assert server[taken] >= node[sent] == people[sent]
    assert people[taken] >= server[sent]


# --- the supervisor ------------------------------------------------------------------------


class Loops:
    """Loops that note how they ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.stop = asyncio.Event()

    async def forever(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append("forever")

    async def failing(self) -> None:
        raise RuntimeError("broken")

    async def stopping(self) -> None:
        self.stop.set()
        await asyncio.Event().wait()


async def test_the_first_loop_that_fails_ends_them_all() -> None:
    loops = Loops()
    with pytest.raises(RuntimeError, match="broken"):
        await run_all({"a": loops.forever, "b": loops.failing}, loops.stop)
    assert loops.ended == ["forever"]


async def test_a_loop_that_returns_ends_the_others_too() -> None:
    loops = Loops()

    async def short() -> None:
        return

    await run_all({"a": loops.forever, "b": short}, loops.stop)
    assert loops.ended == ["forever"]


async def test_stopping_cancels_every_loop_and_waits_for_it() -> None:
    loops = Loops()
    await run_all({"a": loops.forever, "b": loops.stopping}, loops.stop)
    assert loops.ended == ["forever"]


async def test_a_loop_that_fails_expresses_the_wish_for_an_end() -> None:
    loops = Loops()
    with pytest.raises(RuntimeError, match="broken"):
        await run_all({"a": loops.failing}, loops.stop)
    assert loops.stop.is_set()


# --- logs ------------------------------------------------------------------------------------


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Logging as a process sets it up, into memory; put back afterwards."""
    text = io.StringIO()
    monkeypatch.setattr("sys.stderr", text)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    set_up_logging("test")
    yield text
    root.handlers, root.level = handlers, level
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def lines(text: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.getvalue().splitlines()]


def test_every_line_is_one_json_object_with_time_level_and_process(log: io.StringIO) -> None:
    structlog.get_logger("a").warning("run_ended", run_id="5")
    logging.getLogger("b").error("from %s", "elsewhere")
    first, second = lines(log)
    assert (first["event"], first["run_id"], first["level"], first["process"]) == ("run_ended", "5", "warning", "test")
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["process"]) == ("from elsewhere", "test")


def test_a_newline_in_a_value_makes_no_second_line(log: io.StringIO) -> None:
    structlog.get_logger("a").info("run_ended", name='x\n{"event":"forged"}')
    assert len(lines(log)) == 1


@pytest.mark.parametrize("field", ["token", "token_secret", "csr_pem", "Passport", "private_key", "password"])
def test_secrets_are_struck_out(log: io.StringIO, field: str) -> None:
    structlog.get_logger("a").info("asked", **{field: "hunter2"})
    assert "hunter2" not in log.getvalue()
    assert lines(log)[0][field] == "[struck out]"


def test_other_fields_stay() -> None:
    assert strike_secrets(None, "info", {"event": "e", "node": "FI"}) == {"event": "e", "node": "FI"}


def test_a_logger_that_was_used_follows_a_later_set_up() -> None:
    log = structlog.get_logger("test")
    set_up_logging("first")
    log.info("used_once")
    set_up_logging("second")
    with structlog.testing.capture_logs() as told:
        log.info("told_now")
    assert [line["event"] for line in told] == ["told_now"]
