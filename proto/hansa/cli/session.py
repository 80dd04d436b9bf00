"""Runs a command's work with a connected client."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from hansa.cli.invocation import Invocation
from hansa.cli.waiting import tell_wait
from hansa.sdk.client import Client, connect
from hansa.sdk.profile import find_profile, load_profile

Value = TypeVar("Value")


def run(invocation: Invocation, work: Callable[[Client], Awaitable[Value]]) -> Value:
    """Return what ``work`` returns for a client of the chosen profile's coordinator.

    Raises:
        HansaError: ``CONFIG_INVALID`` or ``KEY_INVALID`` before any contact,
            ``COORDINATOR_UNREACHABLE``, or whatever ``work`` raises.
    """
    profile = load_profile(find_profile(invocation.profile, os.environ))

    async def connected() -> Value:
        async with connect(profile, on_wait=tell_wait) as client:
            invocation.contacted = True
            return await work(client)

    return asyncio.run(connected())
