"""The corpora of bad inputs: data files, how their bytes are made, and what no answer may hold or do.

``tests/corpus/*.json`` has the entries; one runner per layer reads them. An
entry is ``{"id", "case", "input", "expect"}``; ``id`` is the number that the
documents use (G4, S17, U9), ``case`` says what it is in words.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from sqlalchemy import select

from coordinator.api.frames import envelope_message
from coordinator.store.base import Base
from hansa.contract import envelope
from hansa.contract.errors import CATALOGUE
from hansa.v1 import job_service_pb2
from hansa.v1 import node_service_pb2 as wire
from hansa.v1.job_service_pb2_grpc import JobServiceStub
from tests.support.job_world import BUNDLE_DIGEST, VARIANT, snapshot
from tests.support.live_coordinator import (
    CALL_SECONDS,
    FEDERATION,
    OLGA,
    RITA,
    LiveCoordinator,
    NodeKey,
    info_of,
    live_coordinator,
    reason_of,
)
from tests.support.scripted_node import NodeStore, ScriptedNode, inventory
from tests.support.trust_world import PROJECT

FOLDER = Path(__file__).parents[1] / "corpus"
MEMORY_GROWTH = 64 << 20
# What a Python exception, a traceback or a library's own words look like.
_INSIDE = re.compile(
    r"Traceback|Exception|Error\b(?! code)|google\.|hansa\.v1|\.py\b|0x[0-9a-f]{6}|sqlite|SELECT ", re.IGNORECASE
)
# Sessions that come and go write these; no input may change anything else.
_OF_SESSIONS = {"nodes": {"connected", "since", "epoch", "store_uuid", "generation"}}


@dataclass(frozen=True)
class Entry:
    """One bad input."""

    id: str
    case: str
    input: Mapping[str, Any]
    expect: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.id} {self.case}"


def entries(layer: str) -> list[Any]:
    """Return the entries of ``tests/corpus/<layer>.json`` as parameters of a test."""
    return [pytest.param(entry, id=str(entry)) for entry in entries_of(layer)]


def entries_of(layer: str) -> list[Entry]:
    """Return the entries of ``tests/corpus/<layer>.json``."""
    found = json.loads((FOLDER / f"{layer}.json").read_text(encoding="utf-8"))
    return [Entry(one["id"], one["case"], one["input"], one["expect"]) for one in found["entries"]]


def made(recipe: Any) -> Any:
    """Return what a recipe of the corpus stands for.

    ``{"hex"}`` and ``{"utf8"}`` are bytes, ``{"repeat", "times"}`` the bytes or
    the text so often, ``{"join"}`` parts one after the other, ``{"field",
    "holds"}`` a length-delimited protobuf field, ``{"json", "type"}`` a message's
    bytes. Everything else stands for itself.
    """
    if not isinstance(recipe, dict):
        return [made(one) for one in recipe] if isinstance(recipe, list) else recipe
    match recipe:
        case {"hex": text}:
            return bytes.fromhex(text)
        case {"utf8": text}:
            return text.encode()
        case {"repeat": inner, "times": times}:
            return made(inner) * times
        case {"join": parts}:
            pieces = [made(part) for part in parts]
            return b"".join(pieces) if isinstance(pieces[0], bytes) else "".join(pieces)
        case {"field": number, "holds": inner}:
            content = made(inner)
            return varint(number << 3 | 2) + varint(len(content)) + content
        case {"json": value, "type": kind}:
            return message(kind, value).SerializeToString()
        case _:
            return {name: made(value) for name, value in recipe.items()}


def varint(number: int) -> bytes:
    """Return protobuf's form of an unsigned integer."""
    out = bytearray()
    while number >= 128:
        out.append(number % 128 + 128)
        number //= 128
    return bytes([*out, number])


def message(kind: str, value: Any) -> Any:
    """Return the message ``hansa.v1.<kind>`` of a JSON value."""
    found = descriptor_pool.Default().FindMessageTypeByName(f"hansa.v1.{kind}")
    return json_format.ParseDict(value, message_factory.GetMessageClass(found)())


def check_refusal(error: grpc.aio.AioRpcError, expect: Mapping[str, Any]) -> None:
    """Check the code and the reason, and that the answer tells nothing from inside."""
    reason = reason_of(error)
    found = {"code": error.code().name, "reason": None if reason is None else reason.value}
    assert found == {"code": expect["code"], "reason": expect.get("reason")}, error.details()
    check_words(error.details() or "")
    if "field" in expect:
        info = info_of(error)
        assert info is not None
        assert info.metadata["field"] == expect["field"]
    if reason is not None and not expect.get("own_words"):
        assert error.details() == CATALOGUE[reason].public


async def error_of(call: Any) -> grpc.aio.AioRpcError:
    """Return how a call ended, as an error whatever it was."""
    code, first, last = await call.code(), await call.initial_metadata(), await call.trailing_metadata()
    return grpc.aio.AioRpcError(code, first, last, details=await call.details())


def check_words(text: str) -> None:
    """Check that a text for the caller has no words of an exception and no control character."""
    assert text.isprintable(), ascii(text)
    assert len(text) <= 500
    assert not _INSIDE.search(text), text


class Memory:
    """How much memory this process has taken at most since the object was made."""

    def __init__(self) -> None:
        # "5" sets the high-water mark back to what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    def check(self) -> None:
        """Check that the growth was within what one bad input may cost."""
        grown = _status("VmHWM") - self._before
        assert grown < MEMORY_GROWTH, f"{grown >> 20} MiB"


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


class RawNode(ScriptedNode):
    """A scripted node that may write any bytes into its stream."""

    def __init__(self, channel: grpc.aio.Channel, store: NodeStore) -> None:
        super().__init__(store)
        self.error: grpc.aio.AioRpcError | None = None
        # The run that a test is about.
        self.run = ""
        call: Any = channel.stream_stream("/hansa.v1.NodeService/Connect")
        self.call = call()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for frame in self.call:
                await self.down.put(wire.CoordinatorFrame.FromString(frame))
        except grpc.aio.AioRpcError as error:
            self.error = error

    async def send(self, frame: wire.NodeFrame) -> None:
        await self.send_bytes(frame.SerializeToString())

    async def send_bytes(self, data: bytes) -> None:
        await self.call.write(data)

    async def hang_up(self) -> None:
        """End the stream from the node's side, and wait for its end."""
        await self.call.done_writing()
        await self.ended()

    async def ended(self) -> grpc.aio.AioRpcError | None:
        """Wait until the stream is over; return why, if the node was told."""
        async with asyncio.timeout(40):
            await self._reader
        return self.error


@dataclass
class CorpusFederation:
    """A live coordinator with the node FI, its dataset and one analysis."""

    live: LiveCoordinator
    key: NodeKey
    store: NodeStore = field(default_factory=NodeStore)
    _channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)

    def dump(self) -> Mapping[str, Sequence[Any]]:
        """Return everything in the coordinator's store but which sessions there are."""
        return self.live.foundation.database.run_sync(_dump)

    def raw_channel(self, listener: str) -> grpc.aio.Channel:
        """Return a channel to ``people``, ``enrolment`` or, with the node's certificate, ``node``.

        It sends messages of any size: what is refused, the coordinator refuses.
        """
        if listener not in self._channels:
            credentials = grpc.ssl_channel_credentials(self.live.root)
            if listener == "node":
                chain = self.key.certificate_pem.encode()
                credentials = grpc.ssl_channel_credentials(self.live.root, self.key.key_pem, chain)
            options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.secure_channel(self.live.address(listener), credentials, options=options)
            self.live.channels.append(channel)
            self._channels[listener] = channel
        return self._channels[listener]

    async def call(self, method: str, body: bytes, *, listener: str, person: str = OLGA) -> bytes:
        """Send bytes as one unary request."""
        metadata = self.live.bearer(person) if listener == "people" else ()
        call: Any = self.raw_channel(listener).unary_unary(method)
        return bytes(await call(body, metadata=metadata, timeout=CALL_SECONDS))

    async def is_up(self) -> bool:
        """Say whether an honest call is still answered."""
        return b"FI" in await self.call("/hansa.v1.CatalogueService/ListNodes", b"", listener="people")

    async def attach(self) -> RawNode:
        """Return the node with a fresh session that streams."""
        node = RawNode(self.raw_channel("node"), self.store)
        await node.attach()
        await node.heartbeat()
        return node

    def job(self, **changes: Any) -> dict[str, Any]:
        """Return a good job as JSON; ``changes`` replace fields."""
        now = self.live.clock()
        return {
            "v": 1,
            "federation": FEDERATION,
            "directory_version": self.live.trust.directory.version,
            "job_id": str(uuid4()),
            "nonce": uuid4().hex,
            "submitter": RITA,
            "project": PROJECT,
            "analysis": {"name": "allele-frequency", "version": "1.0", "digest": BUNDLE_DIGEST},
            "parameters": {"variants": VARIANT},
            "datasets": [{"node": "FI", "dataset": "FI-aisnp", "snapshot": snapshot("FI")}],
            "quorum": 1,
            "not_before": now.isoformat(),
            "not_after": (now + timedelta(minutes=30)).isoformat(),
            **changes,
        }

    async def submit(self, job: Any) -> Any:
        """Submit an envelope as the researcher."""
        request = job_service_pb2.SubmitJobRequest(request_id=uuid4().hex, job=job)
        stub = JobServiceStub(self.raw_channel("people"))
        return await stub.SubmitJob(request, metadata=self.live.bearer(RITA), timeout=CALL_SECONDS)


def signed_job(federation: CorpusFederation, payload: bytes | None = None, kind: str = envelope.JOB_TYPE) -> Any:
    """Return ``payload``, or a good job, in an envelope that the researcher signed."""
    content = json.dumps(federation.job()).encode() if payload is None else payload
    return envelope_message(envelope.sign(kind, content, key_id=RITA, key=federation.live.keys[RITA]))


@asynccontextmanager
async def corpus_federation(folder: Path) -> AsyncIterator[CorpusFederation]:
    """Run a coordinator with one node that has joined and announced its dataset."""
    async with live_coordinator(folder / "state") as live:
        federation = CorpusFederation(live, await live.join("FI"))
        node = await federation.attach()
        await node.tell(inventory(("FI-aisnp", "FI", "GRCh37", snapshot("FI"))))
        await node.hang_up()
        yield federation


def _dump(session: Any) -> Mapping[str, Sequence[Any]]:
    found = {}
    for table in Base.metadata.sorted_tables:
        columns = [column for column in table.columns if column.name not in _OF_SESSIONS.get(table.name, set())]
        found[table.name] = sorted(tuple(map(str, row)) for row in session.execute(select(*columns)))
    return found
