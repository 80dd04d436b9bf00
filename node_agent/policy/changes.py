"""Putting another policy in force: first it is recorded, then it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from hansa.runtime.clock import Clock
from node_agent.audit.entries import policy_changed
from node_agent.audit.log import append, policy_in_log
from node_agent.policy.book import PolicyBook
from node_agent.policy.policy import policy_digest, policy_of
from node_agent.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChanges:
    """The use cases behind ``hansa-node policy``."""

    book: PolicyBook
    database: Database
    clock: Clock
    # One change at a time, so that log and file are in the same order.
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def view(self) -> dict[str, Any]:
        """Return the policy and its digest as JSON values."""
        return self.book.view()

    async def begin(self) -> None:
        """Record the policy in force unless the log says so already.

        The file may have been changed while no agent ran, or an agent may have
        been stopped between the record and the file.
        """
        async with self._changing:
            await self._record(self.book.digest(), "")

    async def replace(self, values: Mapping[str, Any], by: str) -> None:
        """Put another policy in force.

        Raises:
            HansaError: ``POLICY_INVALID``; the old policy stays in force, as it
                does when the log or the file cannot be written.
        """
        digest = policy_digest(policy_of(values))
        async with self._changing:
            await self._record(digest, by)
            try:
                self.book.replace(values)
            finally:
                await self._record(self.book.digest(), by)

    async def _record(self, digest: str, by: str) -> None:
        now = self.clock()

        def work(session: Session) -> None:
            if policy_in_log(session) != digest:
                append(session, policy_changed(digest, by), now)

        await self.database.run(work)
