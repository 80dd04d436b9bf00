"""The corpus of bad jobs, S1 to S25: signed, submitted over real TLS, and the answer that each must get."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio

from coordinator.api.frames import envelope_message
from hansa.contract import envelope
from hansa.v1 import types_pb2
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
from tests.support.job_world import snapshot
from tests.support.live_coordinator import RITA

pytestmark = pytest.mark.asyncio(loop_scope="module")
OTHER = "bob"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def federation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CorpusFederation]:
    async with corpus_federation(tmp_path_factory.mktemp("jobs")) as running:
        yield running


@pytest.mark.parametrize("entry", entries("jobs"))
async def test_a_bad_job_is_refused_and_leaves_nothing(federation: CorpusFederation, entry: Entry) -> None:
    job = job_of(federation, entry.input)
    if entry.input.get("same_job"):
        first = {**json.loads(job.payload), "purpose": ""}
        await federation.submit(signed_job(federation, json.dumps(first).encode()))
    before, memory = federation.dump(), Memory()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await federation.submit(job)
    check_refusal(caught.value, entry.expect)
    memory.check()
    assert federation.dump() == before
    assert await federation.is_up()


async def test_the_same_job_without_a_fault_is_taken(federation: CorpusFederation) -> None:
    answer = await federation.submit(signed_job(federation))
    assert [run.node for run in answer.job.runs] == ["FI"]


def job_of(federation: CorpusFederation, recipe: Any) -> types_pb2.Envelope:
    if "payload" in recipe:
        return sign(federation, bytes(made(recipe["payload"])))
    spec = federation.job()
    if "name" in recipe:
        place(spec, recipe["name"], recipe["value"])
    for path, value in recipe.get("set", {}).items():
        put(spec, path.split("."), value)
    if "datasets" in recipe:
        spec["datasets"] = [{"node": n, "dataset": f"{n}-aisnp", "snapshot": snapshot(n)} for n in recipe["datasets"]]
    if "datasets_many" in recipe:
        one = spec["datasets"][0]
        spec["datasets"] = [{**one, "node": f"N{number}"} for number in range(recipe["datasets_many"])]
    if "window" in recipe:
        now = federation.live.clock()
        first, last = (now + timedelta(seconds=seconds) for seconds in recipe["window"])
        spec |= {"not_before": first.isoformat(), "not_after": last.isoformat()}
    payload = json.dumps(spec).encode()
    return wrongly_signed(federation, payload, recipe.get("signatures", ""))


def place(spec: dict[str, Any], name: str, value: str) -> None:
    match name:
        case "dataset" | "node":
            spec["datasets"][0][name] = value
        case "analysis":
            spec["analysis"]["name"] = value
        case _:
            spec[name] = value


def put(spec: dict[str, Any], path: list[str], value: Any) -> None:
    *folders, last = path
    for folder in folders:
        spec = spec[folder]
    spec[last] = value


def sign(federation: CorpusFederation, payload: bytes, **changes: Any) -> types_pb2.Envelope:
    how = {"payload_type": envelope.JOB_TYPE, "key_id": RITA, "key": RITA, **changes}
    key = federation.live.keys[how["key"]]
    return envelope_message(envelope.sign(how["payload_type"], payload, key_id=how["key_id"], key=key))


def wrongly_signed(federation: CorpusFederation, payload: bytes, fault: str) -> types_pb2.Envelope:
    changes = {
        "other_key": {"key": OTHER},
        "other_name": {"key_id": OTHER, "key": OTHER},
        "other_type": {"payload_type": envelope.VOTE_TYPE},
        "relabelled": {"payload_type": envelope.VOTE_TYPE},
    }
    job = sign(federation, payload, **changes.get(fault, {}))
    match fault:
        case "none":
            del job.signatures[:]
        case "zeros":
            job.signatures[0].signature = bytes(64)
        case "twice":
            job.signatures.append(job.signatures[0])
        case "relabelled":
            job.payload_type = envelope.JOB_TYPE
        case "flipped":
            # Inside the purpose or the nonce, so that it is a good job still.
            nonce, other = json.loads(payload)["nonce"].encode(), uuid4().hex.encode()
            job.payload = job.payload.replace(nonce, other)
    return job
