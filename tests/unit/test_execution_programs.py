"""Small promises of the execution side that need no process of their own."""

from __future__ import annotations

import platform
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hansa.contract.errors import RunReason
from node_agent.execution import layout
from node_agent.execution.broker import broker_url
from node_agent.execution.runner import Ending, failure
from node_agent.execution.scratch import is_within
from node_agent.execution.seccomp import filter_program
from node_agent.execution.worker import _Child


@pytest.mark.parametrize(
    "module",
    ["node_agent.execution.worker", "node_agent.execution.pools", "snakemake_executor_plugin_hansa"],
)
def test_no_worker_imports_grpc(module: str) -> None:
    program = f"import sys, {module}; sys.exit('grpc' in sys.modules or 'sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_reason_for_which_a_run_was_stopped_wins_over_how_it_died() -> None:
    stopped = Ending(stopped=RunReason.TIME_LIMIT, status=137, memory_kills=1)
    assert failure(stopped) is RunReason.TIME_LIMIT
    assert failure(replace(stopped, stopped=RunReason.CANCELLED)) is RunReason.CANCELLED
    assert failure(replace(stopped, stopped=None)) is RunReason.MEMORY_LIMIT
    assert failure(replace(stopped, stopped=None, status=0)) is None


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (Ending(stopped=None, status=1), RunReason.ANALYSIS_FAILED),
        (Ending(stopped=None, status=1, memory_kills=1), RunReason.MEMORY_LIMIT),
        (Ending(stopped=None, status=1, process_refusals=3), RunReason.PROCESS_LIMIT),
        (Ending(stopped=None, status=1, scratch_full=True), RunReason.SCRATCH_LIMIT),
        (Ending(stopped=None, status=70), RunReason.SANDBOX_FAILED),
        (Ending(stopped=None, status=137), RunReason.RUN_LOST),
        (Ending(stopped=None, status=1, killed=True), RunReason.RUN_LOST),
        (Ending(stopped=None, status=1, killed=True, memory_kills=1), RunReason.MEMORY_LIMIT),
        (Ending(stopped=None, status=0, killed=True, process_refusals=1, scratch_full=True), None),
    ],
)
def test_each_way_to_fail_has_a_reason_of_its_own(ending: Ending, reason: RunReason | None) -> None:
    assert failure(ending) is reason


def test_a_scratch_folder_is_measured_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "link").symlink_to("/usr")
    assert is_within(tmp_path, 200_000)
    assert not is_within(tmp_path, 50_000)


def test_folders_nested_too_deeply_are_over_any_limit(tmp_path: Path) -> None:
    (tmp_path / "/".join("d" * 70)).mkdir(parents=True)
    assert not is_within(tmp_path, 1 << 60)


def test_an_operators_own_broker_wins_over_the_embedded_one(tmp_path: Path) -> None:
    assert broker_url(tmp_path, "amqp://node@localhost//") == "amqp://node@localhost//"
    assert broker_url(Path("/state"), None) == "redis+socket:///state/broker/redis.sock?virtual_host=0"


def test_a_socket_in_a_deep_state_folder_gets_a_short_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    (deep / "broker").mkdir(parents=True)
    address = broker_url(deep, None).removeprefix("redis+socket://").partition("?")[0]
    assert len(address) < 108
    assert Path(address).parent.resolve() == (deep / "broker").resolve()


def test_an_interpreter_that_the_box_would_hide_is_refused() -> None:
    found = layout.this_interpreter()
    assert layout.obstacle(found) is None
    assert "install Python elsewhere" in str(layout.obstacle(replace(found, base=Path("/work/python"))))


_RET, _LD, _JEQ, _JGE, _JSET = 0x06, 0x20, 0x15, 0x35, 0x45


def _decide(program: bytes, machine: int, number: int, argument: int = 0) -> int:
    """Run the filter as the kernel would and return its verdict."""
    operations = list(struct.iter_unpack("=HBBI", program))
    data = {0: number, 4: machine, 16: argument}
    place = accumulator = 0
    while True:
        code, if_true, if_false, value = operations[place]
        if code == _RET:
            return int(value)
        if code == _LD:
            accumulator, step = data[value], 0
        else:
            truth = {_JEQ: accumulator == value, _JGE: accumulator >= value, _JSET: bool(accumulator & value)}[code]
            step = if_true if truth else if_false
        place += 1 + step


@pytest.mark.parametrize(
    ("machine", "audit", "numbers"),
    [
        ("x86_64", 0xC000003E, {"read": 0, "mount": 165, "clone": 56, "clone3": 435, "socket": 41}),
        ("aarch64", 0xC00000B7, {"read": 63, "mount": 40, "clone": 220, "clone3": 435, "socket": 198}),
    ],
)
def test_the_filter_refuses_what_a_computation_never_needs(machine: str, audit: int, numbers: dict[str, int]) -> None:
    program = filter_program(machine)
    assert program is not None
    allow, eperm, enosys, family = 0x7FFF0000, 0x50001, 0x50026, 0x50061
    assert _decide(program, audit, numbers["read"]) == allow
    assert _decide(program, audit, numbers["mount"]) == eperm
    assert _decide(program, audit, 425) == eperm  # io_uring_setup
    assert _decide(program, audit, numbers["clone3"]) == enosys
    assert _decide(program, audit, numbers["clone"], 0x11) == allow  # a fork
    assert _decide(program, audit, numbers["clone"], 0x3D0F00) == allow  # a thread
    assert _decide(program, audit, numbers["clone"], 0x10000000) == eperm  # a user namespace
    assert [_decide(program, audit, numbers["socket"], kind) for kind in (1, 2, 10)] == [allow] * 3
    assert [_decide(program, audit, numbers["socket"], kind) for kind in (16, 17, 38, 40)] == [family] * 4
    assert _decide(program, audit, 0x40000000 + numbers["mount"]) == eperm
    assert _decide(program, 0x40000003, numbers["read"]) == 0x80000000  # 32-bit calls


def test_this_machine_has_a_filter() -> None:
    assert filter_program(platform.machine()) is not None
    assert filter_program("z80") is None


def waits_of(lifetime: float) -> list[float]:
    """Return how long after each of eight deaths a program is started again; each time it has lived for so long."""
    now, waits = 1000.0, []
    child = _Child([sys.executable, "-c", ""], "runs")
    for _ in range(8):
        child.tend(now)
        assert child._process is not None
        child._process.wait()
        now += lifetime
        child.tend(now)
        waits.append(child._next_start - now)
        now = child._next_start
    return waits


def test_a_worker_that_had_served_is_started_again_at_once_and_one_that_cannot_start_ever_later() -> None:
    assert max(waits_of(lifetime=6)) <= 0.2
    assert max(waits_of(lifetime=1)) >= 2
