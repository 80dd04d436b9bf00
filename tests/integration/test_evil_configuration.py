"""T-C7 on the wire: nothing that would configure, upgrade or command exists at a real coordinator, for anybody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.live_coordinator import CALL_SECONDS, OLGA, LiveCoordinator, live_coordinator

pytestmark = pytest.mark.slow

PEOPLES = ("AdminService", "JobService", "CatalogueService", "TrustService")
NODES = ("NodeService", "TrustService")
METHODS = (
    "ApplyConfig",
    "SetPolicy",
    "SetLogLevel",
    "Upgrade",
    "RunCommand",
    "Approve",
    "AddPerson",
    "PublishAnalysis",
)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveCoordinator]:
    async with live_coordinator(tmp_path / "coordinator") as found:
        yield found


async def code_of(channel: grpc.aio.Channel, method: str, metadata: Any = None) -> grpc.StatusCode:
    call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(b"", metadata=metadata, timeout=CALL_SECONDS)
    return refused.value.code()


async def test_evil_there_is_no_method_that_configures_for_an_operator(live: LiveCoordinator) -> None:
    for service in PEOPLES:
        for method in METHODS:
            path = f"/hansa.v1.{service}/{method}"
            assert await code_of(live.people, path, live.bearer(OLGA)) is grpc.StatusCode.UNIMPLEMENTED, path


async def test_evil_there_is_no_method_that_configures_for_a_node(live: LiveCoordinator) -> None:
    key = await live.join("FI")
    chain = key.certificate_pem.encode()
    channel = live.channel("node", grpc.ssl_channel_credentials(live.root, key.key_pem, chain))
    for service in NODES:
        for method in METHODS:
            path = f"/hansa.v1.{service}/{method}"
            assert await code_of(channel, path) is grpc.StatusCode.UNIMPLEMENTED, path
