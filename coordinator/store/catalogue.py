"""Analyses and datasets. Works inside the caller's transaction and never commits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select, tuple_, update
from sqlalchemy.orm import Session

from coordinator.domain.membership import NodeState
from coordinator.store.paging import Page, Slice, cut
from coordinator.store.people_models import AnalysisRow, DatasetRow, NodeRow

_SEPARATOR = "/"


@dataclass(frozen=True, slots=True)
class Analysis:
    """A published analysis; ``manifest`` is JSON exactly as published."""

    name: str
    version: str
    digest: str
    manifest: bytes


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset as its node reports it; ``snapshot`` is a digest."""

    dataset_id: str
    node: str
    build: str
    snapshot: str


class AnalysisRepository:
    """The analysis catalogue: what the trust repository in force approves."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, name: str, version: str) -> Analysis | None:
        """Return this version, if it is listed."""
        query = select(AnalysisRow).where(AnalysisRow.name == name, AnalysisRow.version == version, AnalysisRow.listed)
        row = self._session.scalar(query)
        return None if row is None else _analysis(row)

    def of_digest(self, digest: str) -> Analysis | None:
        """Return the analysis whose bundle has this digest, also one that is listed no more."""
        row = self._session.get(AnalysisRow, digest)
        return None if row is None else _analysis(row)

    def newest(self, name: str) -> Analysis | None:
        """Return the highest listed version, if there is any."""
        query = select(AnalysisRow).where(AnalysisRow.name == name, AnalysisRow.listed)
        row = self._session.scalar(query.order_by(AnalysisRow.rank.desc()).limit(1))
        return None if row is None else _analysis(row)

    def list_exactly(self, analyses: Iterable[Analysis]) -> None:
        """Make ``analyses`` all that is listed."""
        self._session.execute(update(AnalysisRow).values(listed=False))
        self._session.expire_all()
        for analysis in analyses:
            row = self._session.get(AnalysisRow, analysis.digest)
            if row is None:
                row = AnalysisRow(digest=analysis.digest, manifest=analysis.manifest)
                self._session.add(row)
            row.name, row.version, row.rank = analysis.name, analysis.version, _rank(analysis.version)
            row.listed = True
        self._session.flush()

    def page(self, page: Page) -> Slice[Analysis]:
        """Return what is listed by name, then by version from low to high."""
        name, _, rank = page.after.partition(_SEPARATOR)
        place = tuple_(AnalysisRow.name, AnalysisRow.rank)
        query = select(AnalysisRow).where(AnalysisRow.listed, place > (name, rank))
        rows = self._session.scalars(query.order_by(AnalysisRow.name, AnalysisRow.rank).limit(page.limit + 1)).all()
        return cut(rows, page, lambda row: f"{row.name}{_SEPARATOR}{row.rank}", _analysis)


class DatasetRepository:
    """The inventory, as the nodes report it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def replace(self, node: str, datasets: Sequence[Dataset]) -> None:
        """Make ``datasets`` all that ``node`` offers."""
        self._session.execute(delete(DatasetRow).where(DatasetRow.node == node))
        self._session.add_all(
            DatasetRow(node=node, dataset_id=dataset.dataset_id, build=dataset.build, snapshot=dataset.snapshot)
            for dataset in datasets
        )
        self._session.flush()

    def get(self, node: str, dataset_id: str) -> Dataset | None:
        """Return the dataset, if the node offers it."""
        row = self._session.get(DatasetRow, (node, dataset_id))
        return None if row is None else _dataset(row)

    def page(self, page: Page) -> Slice[Dataset]:
        """Return the datasets of active nodes, by id, then by node."""
        dataset, _, node = page.after.partition(_SEPARATOR)
        place = tuple_(DatasetRow.dataset_id, DatasetRow.node)
        query = (
            select(DatasetRow)
            .join(NodeRow, NodeRow.node == DatasetRow.node)
            .where(place > (dataset, node), NodeRow.state == NodeState.ACTIVE)
            .order_by(DatasetRow.dataset_id, DatasetRow.node)
        )
        rows = self._session.scalars(query.limit(page.limit + 1)).all()
        return cut(rows, page, lambda row: f"{row.dataset_id}{_SEPARATOR}{row.node}", _dataset)


def _rank(version: str) -> str:
    """Return a text that sorts as the version's numbers do (each has up to 4 digits)."""
    return ".".join(part.zfill(4) for part in version.split("."))


def _analysis(row: AnalysisRow) -> Analysis:
    return Analysis(row.name, row.version, row.digest, row.manifest)


def _dataset(row: DatasetRow) -> Dataset:
    return Dataset(row.dataset_id, row.node, row.build, row.snapshot)
