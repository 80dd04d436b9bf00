"""Keeps the node's trust current: asks for news, verifies, and puts it in force.

Nothing that the coordinator answers can end a session or take away what is in
force: a refresh that fails is logged, shown in ``hansa-node status``, and the
verified state before it stays until its own metadata expire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError, Reason
from hansa.runtime.clock import Clock
from hansa.trust.client import TrustClient
from hansa.trust.files import Source
from hansa.trust.view import TrustView
from node_agent.audit.entries import trust_refused
from node_agent.audit.log import append
from node_agent.catalogue import Catalogue
from node_agent.store.database import Database
from node_agent.trust.book import TrustBook, advance_trust, last_checked
from node_agent.trust.folder import NoSource, pinned_root

_log = structlog.get_logger(__name__)

_EVERY_SECONDS: Final = 3600.0
# An offer that names a newer directory waits for it at most so long.
_REACH_SECONDS: Final = 10.0
_UNTOLD: Final = frozenset({Reason.COORDINATOR_UNREACHABLE, Reason.TRUST_UNKNOWN})


Reader = Callable[[TrustClient, datetime, datetime | None], TrustView]


@dataclass(slots=True, kw_only=True)
class TrustKeeper:
    """The agent's part that asks for news of the repository in ``folder``.

    ``source`` is the present session's; the link sets it.
    """

    folder: Path
    book: TrustBook
    catalogue: Catalogue
    database: Database
    clock: Clock
    source: Source = field(default_factory=NoSource)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    # One thread of its own: a refresh that was cancelled may still be waiting for the coordinator in it, and
    # however slowly that answers, the agent's other threads are not used up.
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="trust"))

    async def load(self) -> None:
        """Put in force what the folder holds, without any contact.

        Metadata that have expired since are put in force too: they admit no
        new job, but say who was in the directory.
        """
        async with self._turn:
            await self._attempt(self._loaded)

    async def refresh(self) -> None:
        """Ask the source once; whatever comes of it, nothing is raised."""
        async with self._turn:
            await self._attempt(self._fetched)

    async def run(self) -> None:
        """Refresh now, hourly, and whenever ``tell`` was called."""
        while True:
            self._news.clear()
            await self.refresh()
            try:
                async with asyncio.timeout(_EVERY_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                continue

    def tell(self) -> None:
        """Say that there is news."""
        self._news.set()

    async def reach(self, directory_version: int) -> None:
        """Refresh if this node's directory is older, for a bounded time."""
        if directory_version <= self.book.directory_version:
            return
        try:
            async with asyncio.timeout(_REACH_SECONDS):
                await self.refresh()
        except TimeoutError:
            _log.warning("trust_not_reached", wanted=directory_version, known=self.book.directory_version)

    async def _attempt(self, read: Reader) -> None:
        now = self.clock()
        checked = await self.database.run(last_checked)
        try:
            loop = asyncio.get_running_loop()
            view = await loop.run_in_executor(self._thread, self._in_thread, read, now, checked)
            new = await self.database.run(lambda session: advance_trust(session, view, now))
        except HansaError as error:
            await self._refused(error, now)
            return
        except Exception:
            _log.exception("trust_refresh_crashed")
            self.book.fault = Reason.INTERNAL.value
            return
        self.book.view, self.book.fault, self.book.checked_at = view, "", now
        if new:
            _log.info("trust_in_force", directory=view.directory.version, analyses=sorted(self.catalogue))

    def _in_thread(self, read: Reader, now: datetime, checked: datetime | None) -> TrustView:
        client = TrustClient(self.folder, pinned_root(self.folder), self.source)
        view = read(client, now, checked)
        self.catalogue.install(view, lambda _path, sha256: client.file_of(view, sha256))
        return view

    @staticmethod
    def _fetched(client: TrustClient, now: datetime, checked: datetime | None) -> TrustView:  # noqa: ARG004
        return client.refresh(now)

    @staticmethod
    def _loaded(client: TrustClient, now: datetime, checked: datetime | None) -> TrustView:
        try:
            return client.load(now)
        except HansaError as error:
            if error.reason is not Reason.TRUST_EXPIRED or checked is None:
                raise
            return client.load(checked)

    async def _refused(self, error: HansaError, now: datetime) -> None:
        _log.warning("trust_not_refreshed", reason=error.reason.value, detail=str(error))
        again, self.book.fault = self.book.fault == error.reason.value, error.reason.value
        if again or error.reason in _UNTOLD:
            return
        known = self.book.directory_version

        def note(session: Session) -> None:
            append(session, trust_refused(error.reason, known), now)

        await self.database.run(note)
