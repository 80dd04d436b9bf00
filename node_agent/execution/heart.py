"""Beats for one execution, and hears whether it is still wanted."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Final, Self

import structlog

from node_agent.execution.agent_client import AgentAwayError, AgentClient, Claimed, RefusedError, SupersededError

_log = structlog.get_logger(__name__)

BEAT_SECONDS: Final = 1.0


class Heart:
    """A thread that beats while its context is open.

    An agent that is away changes nothing: the execution goes on, and is
    reported when the agent is back.
    """

    def __init__(self, agent: AgentClient, claimed: Claimed, every_seconds: float = BEAT_SECONDS) -> None:
        self._agent, self._claimed, self._every = agent, claimed, every_seconds
        self._names = {"run_id": claimed.run_id, "job_id": claimed.job_id, "execution": claimed.execution}
        self.superseded = False
        self.cancelled = False
        # Becomes readable when one of the two becomes true.
        self.news_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heart-{claimed.name}", daemon=True)

    @property
    def wants_end(self) -> bool:
        """Whether the execution is to be killed."""
        return self.superseded or self.cancelled

    def _beat(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self.cancelled = self._agent.beat(self._claimed.run_id, self._claimed.execution)
            except SupersededError:
                self.superseded = True
            except (AgentAwayError, RefusedError) as error:
                _log.info("beat_unheard", **self._names, error=str(error))
            if self.wants_end:
                os.eventfd_write(self.news_fd, 1)
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self.news_fd)
