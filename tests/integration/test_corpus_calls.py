"""The corpus of bad calls, G1 to G14: raw bytes over real TLS, and the answer that each must get."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio

from hansa.v1 import job_service_pb2
from tests.support.corpus import (
    CorpusFederation,
    Entry,
    Memory,
    check_refusal,
    corpus_federation,
    entries,
    made,
    signed_job,
)
from tests.support.live_coordinator import OLGA, RITA

PEOPLE = {"operator": OLGA, "researcher": RITA}
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def federation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CorpusFederation]:
    async with corpus_federation(tmp_path_factory.mktemp("calls")) as running:
        yield running


@pytest.mark.parametrize("entry", entries("calls"))
async def test_a_bad_call_gets_its_answer_and_changes_nothing(federation: CorpusFederation, entry: Entry) -> None:
    body = request_of(federation, entry)
    call = federation.call(
        f"/hansa.v1.{entry.input['method']}",
        body,
        listener=entry.input["to"],
        person=PEOPLE[entry.input.get("as", "operator")],
    )
    before, memory = federation.dump(), Memory()
    if entry.expect["code"] == "OK":
        answer = await call
        assert entry.expect["absent"].encode() not in answer
        assert entry.expect["absent"] not in str(federation.dump())
    else:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        check_refusal(caught.value, entry.expect)
        assert federation.dump() == before
    memory.check()
    assert await federation.is_up()


def request_of(federation: CorpusFederation, entry: Entry) -> bytes:
    if not entry.input.get("good_job"):
        return bytes(made(entry.input["bytes"]))
    request: Any = job_service_pb2.SubmitJobRequest(request_id=uuid4().hex, job=signed_job(federation))
    return bytes(request.SerializeToString()) + bytes(made(entry.input["append"]))
