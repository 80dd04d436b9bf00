"""How a daemon ends: a signal asks for it, a deadline makes sure of it, a second signal does not wait.

The deadline is kept by a thread of its own, which ends the process whatever
hangs: a call without an end, a thread that is stuck, a loop that does not turn.
Nothing is lost by that: what is promised is in the store, and what is not
would not survive a power cut either.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from types import FrameType
from typing import Final

from hansa.runtime.clock import utc_now

# The exit status of a process that its deadline has ended.
CUT_SHORT: Final = 70
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Stop(asyncio.Event):
    """The wish for an end. However it came up, the process has ended ``within`` that time of it."""

    def __init__(self, process: str = "", within: timedelta | None = None) -> None:
        """Take the process's name for the log, and the deadline; without one nothing is cut short."""
        super().__init__()
        self._process = process
        self._within = within
        self._counting = False

    def set(self) -> None:
        """Wish for the end; the deadline counts from the first time."""
        self.count_down()
        super().set()

    def count_down(self) -> None:
        """Let the deadline count. May be called from a signal handler; a repeat does nothing."""
        if self._within is not None and not self._counting:
            self._counting = True
            cut_short_after(self._within, self._process)


def cut_short_after(within: timedelta, process: str) -> None:
    """End this process after that time unless it has ended by then, and say so on stderr."""
    seconds = within.total_seconds()
    threading.Thread(target=_cut_short, args=(seconds, process), name="stop-deadline", daemon=True).start()


def _cut_short(seconds: float, process: str) -> None:
    time.sleep(seconds)
    line = {
        "event": "stop_deadline_passed",
        "level": "error",
        "process": process,
        "seconds": seconds,
        "threads": sorted(thread.name for thread in threading.enumerate() if not thread.daemon),
        "timestamp": utc_now().isoformat(),
    }
    # Past the logging of the process: what hangs may hold its lock.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{json.dumps(line)}\n".encode())
    os._exit(CUT_SHORT)


def stop_on_signals(process: str = "", within: timedelta | None = None) -> Stop:
    """Return a wish that SIGTERM and SIGINT express; needs a running event loop.

    A second signal ends the process as if nobody caught it. The handlers are
    the interpreter's and not the loop's: a loop that is stuck in a long call
    would hear of a signal only afterwards.

    Args:
        process: the process's name, for the log.
        within: how long the end may take; None for as long as it takes.
    """
    stop = Stop(process, within)
    loop = asyncio.get_running_loop()

    def ask(_number: int, _frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        stop.count_down()
        loop.call_soon_threadsafe(stop.set)

    for number in _SIGNALS:
        signal.signal(number, ask)
    return stop
