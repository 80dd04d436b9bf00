"""The corpus of bad frames, G1 to G17: what a node may write into its session, and how that ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from coordinator.store.nodes import NodeRepository
from coordinator.store.sessions import SessionRepository
from hansa.contract.ids import NodeId
from hansa.v1 import node_service_pb2 as wire
from tests.support.corpus import (
    CorpusFederation,
    Entry,
    Memory,
    RawNode,
    check_refusal,
    corpus_federation,
    entries,
    made,
)


@pytest.fixture
async def federation(tmp_path: Path) -> AsyncIterator[CorpusFederation]:
    async with corpus_federation(tmp_path) as running:
        yield running


@pytest.mark.parametrize("entry", entries("frames"))
async def test_a_bad_frame_ends_as_it_must_and_changes_nothing(federation: CorpusFederation, entry: Entry) -> None:
    if entry.input.get("instead_of_hello"):
        node = RawNode(federation.raw_channel("node"), federation.store)
    else:
        node = await federation.attach()
    frame, before, memory = frame_of(node, entry.input), federation.dump(), Memory()
    await node.send_bytes(frame)
    if entry.expect.get("acked"):
        await acknowledged(federation, node, frame, entry.expect)
    else:
        await refused(federation, node, entry.expect)
        if not entry.expect.get("quarantined"):
            assert federation.dump() == before
    memory.check()
    assert await federation.is_up()


async def acknowledged(federation: CorpusFederation, node: RawNode, frame: bytes, expect: Mapping[str, Any]) -> None:
    event = wire.NodeFrame.FromString(frame).event
    assert (await node.receive("event_ack")).event_ack.upto_seq == event.seq
    await node.heartbeat()
    head = node.store.events.head
    standing = head if expect.get("unchanged") else head.after(event.body)
    cursor = federation.live.foundation.database.run_sync(
        lambda session: SessionRepository(session).standing("FI").store.event_cursor
    )
    assert cursor == standing
    if "absent" in expect:
        assert expect["absent"] not in str(federation.dump()["datasets"])


async def refused(federation: CorpusFederation, node: RawNode, expect: Mapping[str, Any]) -> None:
    error = await node.ended()
    assert error is not None
    check_refusal(error, expect)
    found = federation.live.foundation.database.run_sync(lambda s: NodeRepository(s).find(NodeId("FI")))
    assert found is not None
    assert (found.state == "QUARANTINED") == bool(expect.get("quarantined"))


def frame_of(node: RawNode, recipe: Mapping[str, Any]) -> bytes:
    if "raw" in recipe:
        return bytes(made(recipe["raw"]))
    event, head = recipe["event"], node.store.events.head
    return wire.NodeFrame(
        event=wire.Event(
            epoch=node.epoch + event.get("epoch", 0),
            seq=head.seq + event.get("ahead", 1),
            prev_hash=bytes(made(event["prev"])) if "prev" in event else head.hash,
            body=bytes(made(event["body"])),
        )
    ).SerializeToString()
