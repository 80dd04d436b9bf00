"""The audit logs over real connections: nodes that witness over mutual TLS, auditors with the command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
import structlog
from cryptography.hazmat.primitives import serialization
from sqlalchemy import text

from hansa.contract.errors import HansaError, Reason
from hansa.contract.merkle import leaf_hash, verify_inclusion
from hansa.contract.notes import Checkpoint, coordinator_origin, parse_note, sign_checkpoint
from hansa.contract.witnessing import LogNews
from hansa.runtime.clock import utc_now
from hansa.sdk.profile import Profile
from hansa.v1 import admin_service_pb2 as wire
from hansa.v1.catalogue_service_pb2 import ListNodesRequest
from node_agent.audit.entries import policy_changed
from node_agent.audit.log import append
from node_agent.audit.witness import LogWitness, Told, WitnessKeys
from node_agent.link.encoding import WireReporter
from node_agent.link.session import Session, SessionParts
from tests.support.agent import Bench, make_bench
from tests.support.hansa_command import Ended, ended, start
from tests.support.live_coordinator import FEDERATION, OLGA, LiveCoordinator, NodeKey, live_coordinator, reason_of

pytestmark = pytest.mark.slow

PATIENCE = 30.0
AUDITOR = "aud"


@dataclass
class Witness:
    """A node's store, its witness, and its session over mutual TLS."""

    node: str
    live: LiveCoordinator
    key: NodeKey
    bench: Bench
    witness: LogWitness = field(init=False)

    def __post_init__(self) -> None:
        keys = WitnessKeys(
            federation=FEDERATION,
            node=self.node,
            own=self.live.trust.keys[self.node],
            coordinator=self.live.foundation.trust_keys.log.public_key,
            report=WireReporter(self.node).release_logged,
        )
        self.witness = LogWitness(self.bench.database, keys, utc_now)

    async def session(self) -> None:
        """Keep one session until it ends."""

        async def load() -> tuple[int, int]:
            return 1, 0

        bench = self.bench
        parts = SessionParts(
            database=bench.database,
            commands=bench.commands,
            trust=bench.keeper,
            wishes=bench.wishes,
            bells=bench.bells,
            reporter=bench.reporter,
            clock=utc_now,
            instance_id=str(uuid4()),
            policy_digest=lambda: b"",
            load=load,
            witness=self.witness,
        )
        await Session(parts, self.live.node(self.key)).run(asyncio.Event())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.session())
        try:
            yield task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError, HansaError):
                await task

    async def seen(self) -> int:
        """Return how much of the coordinator's log the node has cosigned."""
        return int((await self.witness.standing())["coordinator_log"])

    async def decide(self, count: int) -> None:
        def work(session: object) -> None:
            for number in range(count):
                append(session, policy_changed(f"sha256:{number:064x}", "olga"), utc_now())  # type: ignore[arg-type]

        await self.bench.database.run(work)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveCoordinator]:
    async with live_coordinator(tmp_path / "coordinator") as made:
        yield made


async def join(live: LiveCoordinator, node: str, folder: Path) -> Witness:
    return Witness(node, live, await live.join(node), make_bench(folder / node))


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await true():  # noqa: ASYNC110 - two programs are waited for
            await asyncio.sleep(0.05)


async def checkpoint(live: LiveCoordinator) -> tuple[int, int]:
    """Return the size of the published checkpoint and how many have cosigned it."""
    answer = await live.admin("GetCheckpoint", wire.GetCheckpointRequest())
    note = parse_note(answer.checkpoint)
    return note.checkpoint.size, len(note.lines) - 1


async def test_two_nodes_cosign_the_coordinators_log_within_some_heartbeats(
    live: LiveCoordinator, tmp_path: Path
) -> None:
    nodes = [await join(live, node, tmp_path) for node in ("FI", "ES")]
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.running())

        async def cosigned() -> bool:
            size, cosigners = await checkpoint(live)
            return cosigners == 2 and [await node.seen() for node in nodes] == [size, size]

        await until(cosigned)
        await nodes[0].decide(5)

        async def witnessed() -> bool:
            return bool((await nodes[0].witness.standing())["log_seen_by_coordinator"] >= 5)

        await until(witnessed)
    for node in nodes:
        node.bench.database.close()


@dataclass(slots=True)
class FullWitness(LogWitness):
    """Its store has room for nothing while it is ``full``; what a full disk does to a store is tested elsewhere."""

    full: bool = False
    refused: int = 0

    async def hear(self, news: LogNews, told: Told) -> bool:
        """Refuse what would have to be kept."""
        if self.full and (news.checkpoint or news.cosignature):
            self.refused += 1
            raise HansaError(Reason.STORE_FULL)
        return await LogWitness.hear(self, news, told)


async def test_a_node_whose_store_is_full_keeps_its_session_and_cosigns_once_there_is_room(
    live: LiveCoordinator, tmp_path: Path
) -> None:
    node = await join(live, "FI", tmp_path)
    node.witness = witness = FullWitness(node.bench.database, node.witness.keys, utc_now)

    async def level() -> bool:
        return await node.seen() == (await checkpoint(live))[0]

    async with node.running() as task:
        await until(level)
        witness.full = True
        # A first operator's wish waits for the second's word, and is in the log.
        with suppress(grpc.aio.AioRpcError):
            await live.admin("InviteNode", wire.InviteNodeRequest(request_id=uuid4().hex, node="SE"))

        async def refused() -> bool:
            return task.done() or witness.refused >= 2

        await until(refused)
        assert not task.done()
        witness.full = False
        await until(level)
        assert not task.done()
    node.bench.database.close()


async def test_an_alarm_that_a_full_store_cannot_keep_ends_the_session(live: LiveCoordinator, tmp_path: Path) -> None:
    node = await join(live, "FI", tmp_path)
    node.witness = witness = FullWitness(node.bench.database, node.witness.keys, utc_now)
    witness.full = witness._alarm = True
    async with node.running() as task:
        with pytest.raises(HansaError) as caught:
            await asyncio.wait_for(task, PATIENCE)
    assert caught.value.reason is Reason.STORE_FULL
    node.bench.database.close()


async def test_a_node_whose_log_was_cut_loses_its_session_and_its_standing(
    live: LiveCoordinator, tmp_path: Path
) -> None:
    node = await join(live, "FI", tmp_path)
    await node.decide(6)

    async def witnessed() -> bool:
        return bool((await node.witness.standing())["log_seen_by_coordinator"] == 6)

    async with node.running():
        await until(witnessed)
    # Of six entries the first three, and the one complete subtree over them.
    for statement in (
        'DELETE FROM audit_leaves WHERE "index" >= 3',
        'DELETE FROM audit_subjects WHERE "index" >= 3',
        'DELETE FROM audit_nodes WHERE level > 1 OR "index" > 0',
    ):
        await node.bench.database.run(lambda session: session.execute(text(statement)))  # noqa: B023
    with structlog.testing.capture_logs() as logs:
        async with node.running() as task:
            with pytest.raises((grpc.aio.AioRpcError, HansaError)):
                await asyncio.wait_for(task, PATIENCE)
    alarms = [line for line in logs if line["event"] == "node_log_forked"]
    assert [(line["node"], line["seen_size"], line["told_size"]) for line in alarms] == [("FI", 6, 3)]
    listed = await live.catalogue("ListNodes", ListNodesRequest())
    assert [(one.reason, one.state) for one in listed.nodes if one.node == "FI"] == [("LOG_FORKED", 5)]
    node.bench.database.close()


async def test_a_split_view_over_the_wire_is_never_cosigned(
    live: LiveCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await join(live, "FI", tmp_path)

    async def some() -> bool:
        return await node.seen() > 0

    async with node.running():
        await until(some)
        before = await node.seen()
    # The coordinator shows this node another tree of the size that it has seen.
    forged = sign_checkpoint(
        Checkpoint(coordinator_origin(FEDERATION), before, leaf_hash(b"another")), live.foundation.trust_keys.log
    ).to_bytes()
    evil = LogNews(checkpoint=forged, proven_from=before, witnessed_size=0)
    monkeypatch.setattr("coordinator.services.witnessing._tidings", lambda *_: evil)

    async def alarmed() -> bool:
        return node.witness.alarm()

    async with node.running():
        await until(alarmed)
    assert await node.seen() == before
    assert "does not continue" in (await node.witness.standing())["log_alarm"]
    node.bench.database.close()


# --- the auditor's command -----------------------------------------------------------------


def profile_of(live: LiveCoordinator, person: str, folder: Path) -> Path:
    """Write a profile of ``person``; return its path."""
    folder.mkdir()
    key = folder / "key.pem"
    key.touch(mode=0o600)
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(live.keys[person].private_bytes(*pem))
    (folder / "ca.pem").write_bytes(live.root)
    (folder / "root.json").write_bytes(live.trust.root)
    profile = Profile(
        federation=FEDERATION,
        endpoint=live.address("people"),
        ca_file=Path("ca.pem"),
        person=person,
        key_file=Path("key.pem"),
        trust_root=Path("root.json"),
    )
    (folder / "profile.toml").write_text(profile.to_toml())
    return folder / "profile.toml"


async def command(profile: Path, *arguments: str | Path) -> Ended:
    """Run ``hansa`` as a process, beside the server's event loop."""
    process = await asyncio.to_thread(partial(start, *arguments, profile=profile))
    return await asyncio.to_thread(ended, process)


async def test_an_auditor_reads_verifies_exports_and_proves_the_log(live: LiveCoordinator, tmp_path: Path) -> None:
    nodes = [await join(live, node, tmp_path) for node in ("FI", "ES")]
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.running())

        async def cosigned() -> bool:
            return (await checkpoint(live))[1] == 2

        await until(cosigned)
    profile = profile_of(live, AUDITOR, tmp_path / "auditor")
    verified = await command(profile, "audit", "verify", "--output", "json")
    assert (verified.code, verified.err) == (0, "")
    found = verified.document
    assert (found["sound"], found["witnesses"], found["witnesses_needed"]) == (True, ["ES", "FI"], 2)
    assert found["continues"] is None
    again = await command(profile, "audit", "verify", "--output", "json")
    assert (again.code, again.document["continues"]) == (0, found["size"])
    shown = await command(profile, "audit", "show", "--output", "json")
    assert shown.document["entries"][-1]["action"] == "trust_in_force"

    file = tmp_path / "log.jsonl"
    assert (await command(profile, "audit", "export", file)).code == 0
    head, *lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == parse_note(head["checkpoint"].encode()).checkpoint.size
    assert not [name for name in ("olga", OLGA, "op1") if f'"{name}"' in file.read_text()]

    proven = (await command(profile, "audit", "prove", "2", "--output", "json")).document
    at = parse_note(proven["checkpoint"].encode()).checkpoint
    hashes = [bytes.fromhex(one) for one in proven["hashes"]]
    assert verify_inclusion(leaf_hash(proven["body"].encode()), proven["index"], at.size, hashes, at.root)
    beyond = await command(profile, "audit", "prove", "99999")
    assert (beyond.code, beyond.reason) == (1, "LOG_ENTRY_UNKNOWN")
    for node in nodes:
        node.bench.database.close()


async def test_without_enough_witnesses_an_auditor_is_told(live: LiveCoordinator, tmp_path: Path) -> None:
    profile = profile_of(live, AUDITOR, tmp_path / "auditor")
    verified = await command(profile, "audit", "verify")
    assert (verified.code, "TOO FEW WITNESSES" in verified.out) == (1, True)
    found = (await command(profile, "audit", "verify", "--output", "json")).document
    assert (found["sound"], found["fault"], found["witnesses"]) == (False, None, [])


@pytest.mark.parametrize(
    ("statement", "first"),
    [
        ("UPDATE audit SET subject = 'nobody' WHERE \"index\" = 2", 2),
        ('UPDATE audit_leaves SET body = (SELECT body FROM audit_leaves WHERE "index" = 1) WHERE "index" = 3', 3),
    ],
)
async def test_an_operator_who_edits_the_store_is_found_by_an_auditor_who_was_there_before(
    live: LiveCoordinator, tmp_path: Path, statement: str, first: int
) -> None:
    await join(live, "FI", tmp_path)
    profile = profile_of(live, AUDITOR, tmp_path / "auditor")
    await command(profile, "audit", "verify")
    await live.foundation.database.run(lambda session: session.execute(text(statement)))
    found = (await command(profile, "audit", "verify", "--output", "json")).document
    assert (found["sound"], found["first_wrong"]) == (False, first)


async def test_a_log_that_was_written_anew_does_not_continue_what_the_auditor_has_seen(
    live: LiveCoordinator, tmp_path: Path
) -> None:
    profile = profile_of(live, AUDITOR, tmp_path / "auditor")
    await command(profile, "audit", "verify")
    memory = next((tmp_path / "auditor").rglob("*.checkpoint"))
    at = parse_note(memory.read_bytes()).checkpoint
    other = Checkpoint(at.origin, at.size, leaf_hash(b"another tree"))
    memory.write_bytes(sign_checkpoint(other, live.foundation.trust_keys.log).to_bytes())
    found = await command(profile, "audit", "verify")
    assert (found.code, "does not continue" in found.out) == (1, True)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("ListAuditLeaves", wire.ListAuditLeavesRequest()),
        ("GetCheckpoint", wire.GetCheckpointRequest()),
        ("ProveInclusion", wire.ProveInclusionRequest(index=0, size=1)),
        ("ProveConsistency", wire.ProveConsistencyRequest(old_size=1, new_size=1)),
    ],
)
async def test_only_auditors_and_operators_read_the_log(live: LiveCoordinator, method: str, request_: object) -> None:
    for person in (OLGA, AUDITOR):
        await live.admin(method, request_, person)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await live.admin(method, request_, "ada")
    assert reason_of(caught.value) is Reason.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (wire.ProveInclusionRequest(index=1, size=1), Reason.LOG_ENTRY_UNKNOWN),
        (wire.ProveInclusionRequest(index=0, size=1 << 40), Reason.LOG_ENTRY_UNKNOWN),
        (wire.ProveConsistencyRequest(old_size=2, new_size=1), Reason.LOG_ENTRY_UNKNOWN),
        # Numbers that no store can hold are refused at the door.
        (wire.ProveInclusionRequest(index=0, size=(1 << 64) - 1), Reason.MALFORMED),
        (wire.ProveConsistencyRequest(old_size=0, new_size=1 << 63), Reason.MALFORMED),
    ],
)
async def test_a_proof_of_what_is_not_there_is_refused(live: LiveCoordinator, request_: object, reason: Reason) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await live.admin(type(request_).__name__.removesuffix("Request"), request_, AUDITOR)
    assert reason_of(caught.value) is reason
