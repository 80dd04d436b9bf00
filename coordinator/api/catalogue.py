"""``CatalogueService``: what there is to ask, and whom. Any registered person may call it."""

# Names and signatures of methods are the protocol's.
# ruff: noqa: N802, ARG002

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from coordinator.api.caller import current_caller
from coordinator.api.calls import Calls
from coordinator.api.guard import Context
from coordinator.api.messages import analysis_message, dataset_message, node_message
from coordinator.api.pages import page_of, token_of
from coordinator.services.catalogue import find_analysis, list_nodes
from coordinator.store.catalogue import AnalysisRepository, DatasetRepository
from hansa.runtime.clock import Clock
from hansa.v1 import catalogue_service_pb2 as wire
from hansa.v1 import catalogue_service_pb2_grpc


class CatalogueServicer(catalogue_service_pb2_grpc.CatalogueServiceServicer):
    """Parse, one call, convert."""

    def __init__(self, calls: Calls, clock: Clock, conditions: Callable[[], Mapping[str, Sequence[str]]]) -> None:
        """Take what runs transactions, the clock that ends invitations, and what connected nodes say of themselves."""
        self._calls = calls
        self._clock = clock
        self._conditions = conditions

    async def ListAnalyses(self, request: wire.ListAnalysesRequest, context: Context) -> wire.ListAnalysesResponse:
        """Return analyses by name and version."""
        page = page_of(request)
        found = await self._calls.read(lambda session: AnalysisRepository(session).page(page))
        return wire.ListAnalysesResponse(
            analyses=[analysis_message(analysis) for analysis in found.items], next_page_token=token_of(found.last)
        )

    async def GetAnalysis(self, request: wire.GetAnalysisRequest, context: Context) -> wire.GetAnalysisResponse:
        """Return one analysis, the newest version where none is named."""
        found = await self._calls.read(lambda session: find_analysis(session, request.name, request.version))
        return wire.GetAnalysisResponse(analysis=analysis_message(found))

    async def ListDatasets(self, request: wire.ListDatasetsRequest, context: Context) -> wire.ListDatasetsResponse:
        """Return the datasets of active nodes."""
        page = page_of(request)
        found = await self._calls.read(lambda session: DatasetRepository(session).page(page))
        return wire.ListDatasetsResponse(
            datasets=[dataset_message(dataset) for dataset in found.items], next_page_token=token_of(found.last)
        )

    async def ListNodes(self, request: wire.ListNodesRequest, context: Context) -> wire.ListNodesResponse:
        """Return all nodes by name; why one is set apart, to operators and auditors only."""
        page, now, roles = page_of(request), self._clock(), current_caller().roles
        found = await self._calls.read(lambda session: list_nodes(session, page, roles, now))
        conditions = self._conditions()
        return wire.ListNodesResponse(
            nodes=[node_message(node, conditions.get(node.node, ())) for node in found.items],
            next_page_token=token_of(found.last),
        )
