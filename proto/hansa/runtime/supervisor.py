"""Runs the loops of a daemon together: the first that fails ends them all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import structlog

_log = structlog.get_logger(__name__)


async def run_all(loops: Mapping[str, Callable[[], Awaitable[None]]], stop: asyncio.Event) -> None:
    """Run every loop until ``stop`` is set, then cancel them and wait.

    A loop that returns or raises before that ends the others too, and sets
    ``stop``: a daemon with a part missing must not look alive.

    Raises:
        Exception: what the first failing loop raised.
    """
    waiter = asyncio.create_task(stop.wait(), name="stop")
    tasks: dict[asyncio.Task[None], str] = {asyncio.create_task(_run(loop)): name for name, loop in loops.items()}
    done, _ = await asyncio.wait([waiter, *tasks], return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    for task in (waiter, *tasks):
        task.cancel()
    await asyncio.gather(waiter, *tasks, return_exceptions=True)
    for task, name in tasks.items():
        if task in done:
            _log.error("loop_ended", loop=name)
            task.result()


async def _run(loop: Callable[[], Awaitable[None]]) -> None:
    await loop()


async def until_first_ends(*parts: Coroutine[Any, Any, None]) -> None:
    """Run ``parts`` together until the first of them ends, then cancel the others.

    Raises:
        Exception: what a part that ended raised.
    """
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            if not task.done():
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        # A cancelled part has nothing to say; its stream was taken away.
        if isinstance(result, Exception):
            raise result
