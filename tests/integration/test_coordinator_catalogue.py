"""The analysis catalogue and what else people may look up, over TLS, on both databases."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from hansa.contract.errors import Reason
from hansa.v1 import admin_service_pb2, catalogue_service_pb2, types_pb2
from tests.support.live_coordinator import RITA, LiveCoordinator, NodeKey, info_of, live_coordinator, reason_of
from tests.support.stores import empty_store_url, postgres

__all__ = ["empty_store_url", "postgres"]

DIGEST = "sha256:" + "1" * 64


@pytest.fixture
async def live(tmp_path: Path, empty_store_url: str) -> AsyncIterator[LiveCoordinator]:
    async with live_coordinator(tmp_path / "state", empty_store_url) as coordinator:
        yield coordinator


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def manifest(version: str = "1.0", **changes: Any) -> bytes:
    whole = {
        "name": "counts",
        "version": version,
        "title": "Counts",
        "parameters": {"region": {"type": "region", "required": True}},
        "summary": {
            "axes": {"variant": {"labels": "variant"}},
            "arrays": {"ac": {"dtype": "int64", "axes": ["variant"], "merge": "sum", "released": True}},
        },
        "disclosure": "allele-counts",
    }
    return json.dumps({**whole, **changes}).encode()


async def publish(live: LiveCoordinator, content: bytes, digest: str = DIGEST) -> types_pb2.Analysis:
    request = admin_service_pb2.PublishAnalysisRequest(request_id=uuid4().hex, manifest=content, digest=digest)
    answer = await live.admin("PublishAnalysis", request)
    analysis: types_pb2.Analysis = answer.analysis
    return analysis


async def get(live: LiveCoordinator, name: str, version: str = "") -> Any:
    return await live.catalogue(
        "GetAnalysis", catalogue_service_pb2.GetAnalysisRequest(name=name, version=version), RITA
    )


async def test_what_is_published_is_found_byte_for_byte_by_every_person(live: LiveCoordinator) -> None:
    content = manifest()
    assert (await publish(live, content)).manifest == content
    await publish(live, manifest("1.10"))
    found = (await get(live, "counts", "1.0")).analysis
    assert (found.manifest, found.digest) == (content, DIGEST)
    assert (await get(live, "counts")).analysis.version == "1.10"
    listed = await live.catalogue("ListAnalyses", catalogue_service_pb2.ListAnalysesRequest(), RITA)
    assert [analysis.version for analysis in listed.analyses] == ["1.0", "1.10"]


async def test_a_version_is_published_once(live: LiveCoordinator) -> None:
    first = await publish(live, manifest())
    assert await publish(live, manifest()) == first
    for content, digest in ((manifest(title="Other"), DIGEST), (manifest(), "sha256:" + "2" * 64)):
        assert reason_of(await refusal(publish(live, content, digest))) is Reason.ANALYSIS_EXISTS


async def test_a_manifest_or_digest_at_fault_is_refused_with_its_field(live: LiveCoordinator) -> None:
    faults = {
        "surprise": (manifest(surprise=1), DIGEST),
        "version": (manifest(version="latest"), DIGEST),
        "manifest": (b"{", DIGEST),
        "digest": (manifest(), "md5:1"),
    }
    for field, (content, digest) in faults.items():
        info = info_of(await refusal(publish(live, content, digest)))
        assert info is not None
        assert info.metadata["field"] == field


async def test_an_analysis_that_is_not_there_is_told_alike_for_every_name(live: LiveCoordinator) -> None:
    await publish(live, manifest())
    for name, version in (("other", ""), ("counts", "9.9"), ("", ""), ("../x", ""), ("counts", "x")):
        assert reason_of(await refusal(get(live, name, version))) is Reason.ANALYSIS_UNKNOWN


async def test_a_node_goes_the_whole_way_and_every_act_stands_in_the_audit_list(live: LiveCoordinator) -> None:
    node_key = await live.enrol(await live.invite("FI"), NodeKey())
    await live.confirm("FI", node_key.fingerprint)
    suspend = admin_service_pb2.SuspendNodeRequest(request_id="s", node="FI", reason="maintenance until Monday")
    await live.admin("SuspendNode", suspend)
    await live.admin("ResumeNode", admin_service_pb2.ResumeNodeRequest(request_id="t", node="FI"))
    await live.admin("RevokeNode", admin_service_pb2.RevokeNodeRequest(request_id="u", node="FI", reason="left"))
    nodes = (await live.catalogue("ListNodes", catalogue_service_pb2.ListNodesRequest(), RITA)).nodes
    assert [(node.node, node.state, node.reason) for node in nodes] == [("FI", types_pb2.Node.REVOKED, "left")]
    entries = (await live.admin("ListAudit", admin_service_pb2.ListAuditRequest())).entries
    assert [(entry.actor, entry.action) for entry in reversed(entries)][2:] == [
        ("olga", "node_invited"),
        ("node:FI", "node_enrolled"),
        ("olga", "node_confirmed"),
        ("olga", "node_suspended"),
        ("olga", "node_resumed"),
        ("olga", "node_revoked"),
    ]


@pytest.mark.parametrize("reason", ["two\nlines", "\x1b[31mred", "a" * 201, "\u202egnp.exe"])
async def test_a_reason_that_could_deceive_a_reader_is_refused(live: LiveCoordinator, reason: str) -> None:
    await live.join("FI")
    request = admin_service_pb2.SuspendNodeRequest(request_id="s", node="FI", reason=reason)
    assert reason_of(await refusal(live.admin("SuspendNode", request))) is Reason.MALFORMED
