"""The datasets that this node offers: registering, listing, removing."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import DATASET_ID
from hansa.contract.limits import MAX_DATASETS
from hansa.contract.states import RUN_TERMINAL
from hansa.runtime.clock import Clock
from node_agent.audit.entries import dataset_added, dataset_removed
from node_agent.audit.log import append
from node_agent.config import StateFolder
from node_agent.reporting import Bells, Reporter
from node_agent.staging.snapshot import Snapshot, verify_snapshot
from node_agent.store.database import Database
from node_agent.store.models import DatasetRow, RunRow
from node_agent.store.outbox import append_event


@dataclass(frozen=True, slots=True, kw_only=True)
class Datasets:
    """The use cases behind ``hansa-node dataset``."""

    database: Database
    state: StateFolder
    reporter: Reporter
    bells: Bells
    clock: Clock
    # One change at a time: folders and rows are changed one after the other.
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def add(self, dataset_id: str, staging: Path) -> DatasetRow:
        """Take the snapshot in ``staging`` into the node's keeping, and announce it.

        Raises:
            HansaError: ``DATASET_INVALID``, ``DATASET_EXISTS``; the staging
                folder is then as it was.
        """
        folder = await asyncio.to_thread(staging.resolve)
        if not DATASET_ID.fullmatch(dataset_id):
            raise HansaError(Reason.DATASET_INVALID, "A dataset's id is 1 to 64 of A-Z a-z 0-9 . _ -", field="id")
        if folder.parent != await asyncio.to_thread(self.state.datasets.resolve):
            raise HansaError(Reason.DATASET_INVALID, log="staged outside of the state folder")
        snapshot = await asyncio.to_thread(verify_snapshot, folder)
        home = self.state.datasets / dataset_id / snapshot.digest.removeprefix("sha256:")
        async with self._changing:
            await self.database.run(lambda session: _refuse_known(session, dataset_id))
            await asyncio.to_thread(_settle, folder, home)
            now = self.clock()
            try:
                row = await self.database.run(lambda session: self._register(session, dataset_id, snapshot, home, now))
            except HansaError:
                # No dataset has it: it is again the importer's, who removes it.
                await asyncio.to_thread(home.replace, folder)
                raise
        self.bells.ring()
        return row

    def _register(self, session: Session, dataset_id: str, snapshot: Snapshot, home: Path, now: datetime) -> DatasetRow:
        _refuse_known(session, dataset_id)
        if len(_all(session)) >= MAX_DATASETS:
            raise HansaError(Reason.DATASET_INVALID, f"A node offers at most {MAX_DATASETS} datasets.", field="id")
        row = DatasetRow(
            dataset_id=dataset_id,
            snapshot=snapshot.digest,
            build=snapshot.build,
            folder=str(home),
            info=_info(snapshot),
            added_at=now,
        )
        session.add(row)
        session.flush()
        append(session, dataset_added(row), now)
        self._announce(session, now)
        return row

    def _announce(self, session: Session, now: datetime) -> None:
        append_event(session, self.reporter.inventory(_all(session), now), now)

    async def remove(self, dataset_id: str) -> None:
        """Forget the dataset, delete its snapshot, and announce what is left.

        Raises:
            HansaError: ``DATASET_UNKNOWN``; ``DATASET_IN_USE``.
        """
        now = self.clock()

        def work(session: Session) -> None:
            row = session.get(DatasetRow, dataset_id)
            if row is None:
                raise HansaError(Reason.DATASET_UNKNOWN, "This node has no such dataset.", field="id")
            users = select(RunRow.run_id).where(
                RunRow.dataset == dataset_id,
                RunRow.state.not_in([state.value for state in RUN_TERMINAL]),
            )
            if session.scalars(users.limit(1)).first() is not None:
                raise HansaError(Reason.DATASET_IN_USE)
            append(session, dataset_removed(row), now)
            session.delete(row)
            session.flush()
            self._announce(session, now)

        async with self._changing:
            await self.database.run(work)
            self.bells.ring()
            await asyncio.to_thread(shutil.rmtree, self.state.datasets / dataset_id, ignore_errors=True)

    async def all(self) -> Sequence[DatasetRow]:
        """Return the datasets, by id."""
        return await self.database.run(_all)

    async def sweep(self) -> None:
        """Delete what no dataset owns: leavings of imports that were cut off."""
        rows = await self.all()
        await asyncio.to_thread(_sweep, self.state.datasets, {(row.dataset_id, Path(row.folder).name) for row in rows})


def _all(session: Session) -> Sequence[DatasetRow]:
    return session.scalars(select(DatasetRow).order_by(DatasetRow.dataset_id)).all()


def _refuse_known(session: Session, dataset_id: str) -> None:
    if session.get(DatasetRow, dataset_id) is not None:
        raise HansaError(
            Reason.DATASET_EXISTS, "There is a dataset of this id; remove it first, or choose another id.", field="id"
        )


def _info(snapshot: Snapshot) -> dict[str, Any]:
    info = asdict(snapshot)
    return {name: dict(value) if isinstance(value, dict) else value for name, value in info.items()}


def _settle(folder: Path, home: Path) -> None:
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if home.exists():
        # The same snapshot, left by an import that was cut off before it was registered.
        shutil.rmtree(home)
    folder.replace(home)


def _sweep(root: Path, owned: set[tuple[str, str]]) -> None:
    """Delete what is not ``owned``: two datasets may have one snapshot, each in a folder of its own."""
    for dataset in root.iterdir() if root.exists() else ():
        if not dataset.is_dir():
            continue  # none of ours
        if dataset.name.startswith(".incoming-"):
            shutil.rmtree(dataset, ignore_errors=True)
            continue
        for snapshot in dataset.iterdir():
            if (dataset.name, snapshot.name) not in owned:
                shutil.rmtree(snapshot, ignore_errors=True)
        if not any(dataset.iterdir()):
            dataset.rmdir()
