"""Whatever frames a node sends after it has attached, its session ends in order: no crash, and never an internal error."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.services.sessions import Patience, Sessions
from hansa.contract.errors import HansaError, Reason
from hansa.v1 import node_service_pb2 as wire
from tests.support.job_world import JobWorld, open_world
from tests.support.scripted_node import NodeStore, PlainNode, run_at

NODE = "FI"
NUMBERS = st.sampled_from([0, 1, 2, 3, 1 << 31, (1 << 32) - 1])
LARGE = st.sampled_from([(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
JOB = "0192f0c1-0000-7000-8000-000000000000"


def messages(schema: Descriptor, texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Return messages of ``schema`` with any fields set, nested ones too."""
    fields = {field.name: values(field, texts) for field in schema.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda chosen: made(schema, chosen))


def values(field: FieldDescriptor, texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    one = single(field, texts)
    return st.lists(one, max_size=2) if field.is_repeated else one


def single(field: FieldDescriptor, texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    nested = field.message_type
    if nested is not None:
        return st.deferred(lambda: messages(nested, texts))
    if field.enum_type is not None:
        return st.integers(0, 17)
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return texts
        case FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=40) | st.just(bytes(32))
        case FieldDescriptor.TYPE_UINT64:
            return NUMBERS | LARGE
        case FieldDescriptor.TYPE_UINT32:
            return NUMBERS
        case _:
            # Seconds and nanoseconds of a time.
            return st.integers(-(1 << 31), (1 << 31) - 1)


def made(schema: Descriptor, chosen: Mapping[str, Any]) -> Any:
    message = GetMessageClass(schema)()
    for name, value in chosen.items():
        field = schema.fields_by_name[name]
        if field.is_repeated:
            getattr(message, name).extend(value)
        elif field.message_type is not None:
            getattr(message, name).CopyFrom(value)
        else:
            setattr(message, name, value)
    return message


def frames(run: str) -> st.SearchStrategy[wire.NodeFrame]:
    """Return frames, half of them events whose bodies can be read."""
    texts = st.sampled_from(
        ["", run, "FI", "FI-aisnp", "GRCh37", "RUN_LOST", "sha256:" + "0" * 64, "\x1b[2J", "é" * 70]
    )
    body = messages(wire.EventBody.DESCRIPTOR, texts).map(lambda made: made.SerializeToString())
    event = st.builds(wire.Event, epoch=st.just(1), seq=st.just(1), prev_hash=st.just(bytes(32)), body=body)
    whole = event.map(lambda made: wire.NodeFrame(event=made))
    return st.one_of(messages(wire.NodeFrame.DESCRIPTOR, texts), whole)


async def after(world: JobWorld, sent: list[wire.NodeFrame]) -> Reason | None:
    """Return how a session ends that sends ``sent`` after its attach."""
    sessions = Sessions(world.desk, lambda: bytes(32), Patience(farewell=timedelta(seconds=5)))
    try:
        node = PlainNode(sessions, NODE, NodeStore())
        node.epoch = (await node.attach()).epoch
        for frame in sent:
            try:
                await node.send(frame)
            except HansaError as error:
                return error.reason
        await node.hang_up()
        return node.fault
    finally:
        await sessions.close()


@pytest.mark.slow
def test_no_frame_after_the_attach_makes_the_session_crash(tmp_path: Path) -> None:
    numbers = iter(range(10**6))

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(frames(run_at(JOB, NODE)), min_size=1, max_size=3))
    def check(sent: list[wire.NodeFrame]) -> None:
        with open_world(f"sqlite:///{tmp_path / f'{next(numbers)}.db'}") as one:
            asyncio.run(one.submit(job_id=JOB))
            assert asyncio.run(after(one, sent)) is not Reason.INTERNAL

    check()
