"""The corpus of bad uploads, G18 and U9: over real TLS, with the answer that each must get."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from hansa.v1 import node_service_pb2 as wire
from tests.support.corpus import (
    CorpusFederation,
    Entry,
    Memory,
    check_refusal,
    corpus_federation,
    entries,
    error_of,
    made,
    signed_job,
)
from tests.support.job_world import released
from tests.support.live_coordinator import CALL_SECONDS
from tests.support.scripted_node import run_at

pytestmark = pytest.mark.asyncio(loop_scope="module")
METHOD = "/hansa.v1.NodeService/UploadSummary"
GOOD = released()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def federation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CorpusFederation]:
    async with corpus_federation(tmp_path_factory.mktemp("uploads")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(federation: CorpusFederation) -> str:
    answer = await federation.submit(signed_job(federation))
    return run_at(answer.job.job_id, "FI")


@pytest.mark.parametrize("entry", entries("uploads"))
async def test_a_bad_upload_gets_its_answer_and_nothing_is_stored(
    federation: CorpusFederation, run: str, entry: Entry
) -> None:
    parts = list(parts_of(entry, run))
    before, memory = federation.dump(), Memory()
    call: Any = federation.raw_channel("node").stream_unary(METHOD)(timeout=CALL_SECONDS)
    for part in parts:
        try:
            await call.write(part)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            break  # refused before it had all
    if entry.input.get("never_finished"):
        call.cancel()
    else:
        await call.done_writing()
    error = await error_of(call)
    check_refusal(error, entry.expect)
    assert federation.dump() == before
    memory.check()
    assert await federation.is_up()


def parts_of(entry: Entry, run: str) -> Iterator[bytes]:
    content = with_cells(entry.input["cells"]) if "cells" in entry.input else GOOD
    if "replace" in entry.input:
        before, after = entry.input["replace"]
        assert before.encode() in content
        content = content.replace(before.encode(), after.encode())
    header: dict[str, Any] = {"run_id": run, "attempt": 1, "execution": 1, "digest": hashlib.sha256(content).digest()}
    changes = entry.input.get("header", {})
    if changes is not None:
        header = {**header, "size": len(content), **made(changes)}
        first = wire.UploadSummaryRequest(header=wire.UploadSummaryRequest.Header(**header))
        yield first.SerializeToString()
    for chunk in entry.input.get("chunks", ["good"]):
        if chunk == "header":
            yield first.SerializeToString()
        else:
            data = {"good": content, "half": content[: len(content) // 2]}.get(str(chunk)) or made(chunk)
            yield wire.UploadSummaryRequest(chunk=data).SerializeToString()


def with_cells(count: int) -> bytes:
    return GOOD.replace(b'"values": [99]', b'"values": [' + b", ".join([b"99"] * count) + b"]")
