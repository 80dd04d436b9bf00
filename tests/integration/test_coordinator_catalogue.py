"""The analysis catalogue and what else people may look up, over TLS, on both databases."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from hansa.contract.digests import bundle_digest
from hansa.contract.errors import Reason
from hansa.v1 import admin_service_pb2, catalogue_service_pb2, types_pb2
from tests.support.live_coordinator import AUDITOR, OLGA, RITA, LiveCoordinator, NodeKey, live_coordinator, reason_of
from tests.support.stores import empty_store_url, postgres

__all__ = ["empty_store_url", "postgres"]


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


async def publish(live: LiveCoordinator, content: bytes, *reviewers: str) -> str:
    """Publish a bundle with votes of ``reviewers``; return its digest."""
    trust, files = live.trust, {"manifest.json": content, "Snakefile": b"rule all: ..."}
    bundle = trust.vote(trust.bundle(files), *(reviewers or ("rev1", "rev2")))
    trust.bundles = [
        one for one in trust.bundles if (one.ref.name, one.ref.version) != (bundle.ref.name, bundle.ref.version)
    ]
    trust.bundles.append(bundle)
    trust.now = live.clock()
    trust.publish()
    await live.publish()
    return bundle_digest(files)


async def get(live: LiveCoordinator, name: str, version: str = "") -> Any:
    return await live.catalogue(
        "GetAnalysis", catalogue_service_pb2.GetAnalysisRequest(name=name, version=version), RITA
    )


async def test_what_is_approved_is_found_byte_for_byte_by_every_person(live: LiveCoordinator) -> None:
    content = manifest()
    digest = await publish(live, content)
    await publish(live, manifest("1.10"))
    found = (await get(live, "counts", "1.0")).analysis
    assert (found.manifest, found.digest) == (content, digest)
    assert (await get(live, "counts")).analysis.version == "1.10"
    listed = await live.catalogue("ListAnalyses", catalogue_service_pb2.ListAnalysesRequest(), RITA)
    assert [(one.name, one.version) for one in listed.analyses] == [
        ("allele-frequency", "1.0"), ("counts", "1.0"), ("counts", "1.10"),
    ]  # fmt: skip


async def test_an_analysis_without_enough_votes_is_not_in_the_catalogue(live: LiveCoordinator) -> None:
    await publish(live, manifest(), "rev1", "rev3")  # two of one organisation
    assert reason_of(await refusal(get(live, "counts"))) is Reason.ANALYSIS_UNKNOWN


async def test_a_change_of_an_analysis_begins_without_votes(live: LiveCoordinator) -> None:
    await publish(live, manifest())
    old = live.trust.bundles[-1]
    changed = live.trust.bundle({**old.files, "Snakefile": b"rule all: other"})
    live.trust.bundles[-1] = replace(changed, votes=old.votes)
    live.trust.publish()
    await live.publish()
    assert reason_of(await refusal(get(live, "counts"))) is Reason.ANALYSIS_UNKNOWN


async def test_an_analysis_that_is_not_there_is_told_alike_for_every_name(live: LiveCoordinator) -> None:
    await publish(live, manifest())
    for name, version in (("other", ""), ("counts", "9.9"), ("", ""), ("../x", ""), ("counts", "x")):
        assert reason_of(await refusal(get(live, name, version))) is Reason.ANALYSIS_UNKNOWN


async def test_a_node_goes_the_whole_way_and_every_act_stands_in_the_audit_list(live: LiveCoordinator) -> None:
    node_key = await live.enrol(await live.invite("FI"), NodeKey())
    await live.confirm("FI", node_key.fingerprint)
    suspend = admin_service_pb2.SuspendNodeRequest(request_id="s", node="FI", reason="maintenance until Monday")
    await live.admin("SuspendNode", suspend)
    await live.two("ResumeNode", admin_service_pb2.ResumeNodeRequest(request_id="t", node="FI"))
    await live.two("RevokeNode", admin_service_pb2.RevokeNodeRequest(request_id="u", node="FI", reason="left"))
    for person, reason in ((OLGA, "left"), (AUDITOR, "left"), (RITA, "")):
        nodes = (await live.catalogue("ListNodes", catalogue_service_pb2.ListNodesRequest(), person)).nodes
        assert [(node.node, node.state, node.reason) for node in nodes] == [("FI", types_pb2.Node.REVOKED, reason)]
    entries = (await live.admin("ListAudit", admin_service_pb2.ListAuditRequest())).entries
    assert [(entry.actor, entry.action) for entry in reversed(entries)] == [
        ("init", "trust_in_force"),
        ("op1", "proposal_made"),
        ("op2", "proposal_seconded"),
        ("op2", "node_invited"),
        ("node:FI", "node_enrolled"),
        ("op1", "node_confirmed"),
        ("op1", "node_suspended"),
        ("op1", "proposal_made"),
        ("op2", "proposal_seconded"),
        ("op2", "node_resumed"),
        ("op1", "proposal_made"),
        ("op2", "proposal_seconded"),
        ("op2", "node_revoked"),
    ]


@pytest.mark.parametrize("reason", ["two\nlines", "\x1b[31mred", "a" * 201, "\u202egnp.exe"])
async def test_a_reason_that_could_deceive_a_reader_is_refused(live: LiveCoordinator, reason: str) -> None:
    await live.join("FI")
    request = admin_service_pb2.SuspendNodeRequest(request_id="s", node="FI", reason=reason)
    assert reason_of(await refusal(live.admin("SuspendNode", request))) is Reason.MALFORMED
