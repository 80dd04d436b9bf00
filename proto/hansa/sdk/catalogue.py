"""What there is to ask, and whom."""

from __future__ import annotations

from collections.abc import Sequence

from hansa.contract.limits import MAX_PAGE
from hansa.sdk.connection import Connection
from hansa.sdk.paging import read_pages
from hansa.v1 import catalogue_service_pb2 as wire
from hansa.v1 import catalogue_service_pb2_grpc, types_pb2


class CatalogueClient:
    """Analyses, datasets and nodes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = catalogue_service_pb2_grpc.CatalogueServiceStub(connection.channel)

    async def analyses(self) -> list[types_pb2.Analysis]:
        """Return every published analysis."""

        async def fetch(token: str) -> tuple[Sequence[types_pb2.Analysis], str]:
            request = wire.ListAnalysesRequest(page_size=MAX_PAGE, page_token=token)
            answer = await self._connection.call(self._stub.ListAnalyses, request)
            return answer.analyses, answer.next_page_token

        return await read_pages(fetch)

    async def analysis(self, name: str, version: str = "") -> types_pb2.Analysis:
        """Return an analysis: the newest version unless one is named.

        Raises:
            RemoteError: ``ANALYSIS_UNKNOWN``.
        """
        request = wire.GetAnalysisRequest(name=name, version=version)
        return (await self._connection.call(self._stub.GetAnalysis, request)).analysis

    async def datasets(self) -> list[types_pb2.Dataset]:
        """Return every dataset that a node offers."""

        async def fetch(token: str) -> tuple[Sequence[types_pb2.Dataset], str]:
            request = wire.ListDatasetsRequest(page_size=MAX_PAGE, page_token=token)
            answer = await self._connection.call(self._stub.ListDatasets, request)
            return answer.datasets, answer.next_page_token

        return await read_pages(fetch)

    async def nodes(self) -> list[types_pb2.Node]:
        """Return every node, also those that are not members yet or any more."""

        async def fetch(token: str) -> tuple[Sequence[types_pb2.Node], str]:
            request = wire.ListNodesRequest(page_size=MAX_PAGE, page_token=token)
            answer = await self._connection.call(self._stub.ListNodes, request)
            return answer.nodes, answer.next_page_token

        return await read_pages(fetch)
