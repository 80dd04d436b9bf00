"""The coordinator's mirror of the trust repository: what comes into force, what is served, what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Snapshot, Timestamp

from coordinator.services.trust import renew_timestamp, state_in_force
from coordinator.store.outboxes import CommandRepository, StoredCommand
from hansa.contract.enrolment import parse_token
from hansa.contract.errors import Reason
from hansa.trust.files import ROOT, TARGETS, RepositoryFiles, metadata_name
from hansa.trust.repository import verify_repository
from hansa.v1 import admin_service_pb2, enrolment_service_pb2, trust_service_pb2
from hansa.v1 import node_service_pb2 as wire
from hansa.v1.admin_service_pb2_grpc import AdminServiceStub
from hansa.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from hansa.v1.trust_service_pb2_grpc import TrustServiceStub
from tests.support.live_coordinator import (
    CALL_SECONDS,
    OLGA,
    RITA,
    LiveCoordinator,
    NodeKey,
    live_coordinator,
    reason_of,
)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveCoordinator]:
    async with live_coordinator(tmp_path / "state") as coordinator:
        yield coordinator


async def refused(call: Any) -> Reason | None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return reason_of(caught.value)


async def metadata(live: LiveCoordinator, role: str, version: int = 0, person: str = RITA) -> bytes:
    request = trust_service_pb2.GetMetadataRequest(role=role, version=version)
    stream = TrustServiceStub(live.people).GetMetadata(request, metadata=live.bearer(person), timeout=CALL_SECONDS)
    return b"".join([answer.chunk async for answer in stream])


async def target(live: LiveCoordinator, sha256: bytes, person: str = RITA) -> bytes:
    request = trust_service_pb2.GetTargetRequest(path="x", sha256=sha256)
    stream = TrustServiceStub(live.people).GetTarget(request, metadata=live.bearer(person), timeout=CALL_SECONDS)
    return b"".join([answer.chunk async for answer in stream])


async def mirrored(live: LiveCoordinator) -> RepositoryFiles:
    """Return the whole repository as somebody gets it who calls for each file."""
    timestamp = await metadata(live, "timestamp")
    snapshot_version = Metadata[Timestamp].from_bytes(timestamp).signed.snapshot_meta.version
    snapshot = await metadata(live, "snapshot", snapshot_version)
    targets_version = Metadata[Snapshot].from_bytes(snapshot).signed.meta["targets.json"].version
    targets = await metadata(live, "targets", targets_version)
    found = {
        "timestamp.json": timestamp,
        f"{snapshot_version}.snapshot.json": snapshot,
        f"{targets_version}.targets.json": targets,
    }
    for version in range(1, live.trust.files.newest(ROOT) + 1):
        found[f"{version}.root.json"] = await metadata(live, "root", version)
    contents = [await target(live, bytes.fromhex(sha256)) for sha256 in live.trust.view.targets.values()]
    return RepositoryFiles(found, {hashlib.sha256(data).hexdigest(): data for data in contents})


def pending(session: Session, node: str) -> list[StoredCommand]:
    return CommandRepository(session).pending(node, after=0, limit=9)


async def test_what_is_served_verifies_from_the_pinned_root(live: LiveCoordinator) -> None:
    view = verify_repository(await mirrored(live), trusted_root=live.trust.root, now=live.clock())
    assert view.directory == live.trust.directory
    assert view.analyses["allele-frequency@1.0"].count.approved


async def test_a_new_version_is_in_force_whole_and_every_node_is_told(live: LiveCoordinator) -> None:
    await live.join("FI")
    await live.join("ES")
    live.trust.now = live.clock()
    live.trust.change(people=(*live.trust.directory.people[1:], live.trust.directory.people[0]))
    answer = await live.publish()
    assert (answer.directory_version, answer.targets_version, answer.root_version) == (2, 2, 1)
    view = verify_repository(await mirrored(live), trusted_root=live.trust.root, now=live.clock())
    assert view.directory.version == 2
    for node in ("FI", "ES"):
        (command,) = live.foundation.database.run_sync(partial(pending, node=node))
        assert wire.CommandBody.FromString(command.body).WhichOneof("body") == "trust_update"


async def test_the_same_files_again_change_nothing(live: LiveCoordinator) -> None:
    before = await metadata(live, "timestamp")
    answer = await live.publish()
    assert answer.targets_version == 1
    assert await metadata(live, "timestamp") == before
    entries = (await live.admin("ListAudit", admin_service_pb2.ListAuditRequest())).entries
    assert [entry.action for entry in entries] == ["trust_in_force"]


async def test_nodes_read_the_repository_on_their_own_listener(live: LiveCoordinator) -> None:
    key = await live.join("FI")
    credentials = grpc.ssl_channel_credentials(live.root, key.key_pem, key.certificate_pem.encode())
    stub = TrustServiceStub(live.channel("node", credentials))
    request = trust_service_pb2.GetMetadataRequest(role="root", version=1)
    assert [answer.chunk async for answer in stub.GetMetadata(request, timeout=CALL_SECONDS)] == [live.trust.root]


async def test_what_there_is_not_is_told_alike(live: LiveCoordinator) -> None:
    for role, version in (("root", 2), ("targets", 9), ("nothing", 0), ("../root", 1), ("timestamp", 77)):
        assert await refused(metadata(live, role, version)) is Reason.TRUST_UNKNOWN
    for sha256 in (b"", b"x" * 32, b"x" * 5000):
        assert await refused(target(live, sha256)) is Reason.TRUST_UNKNOWN
    stranger = TrustServiceStub(live.people).GetTarget(trust_service_pb2.GetTargetRequest(), timeout=CALL_SECONDS)
    assert await refused(stranger.read()) is Reason.UNAUTHENTICATED


async def test_a_version_that_too_few_have_signed_is_refused_and_leaves_nothing(live: LiveCoordinator) -> None:
    live.trust.now = live.clock()
    live.trust.signers = {**live.trust.signers, TARGETS: ("targets1",)}
    live.trust.change(people=live.trust.directory.people[:5])
    assert await refused(live.publish()) is Reason.TRUST_THRESHOLD
    assert await refused(metadata(live, "targets", 2)) is Reason.TRUST_UNKNOWN
    live.trust.signers = {**live.trust.signers, TARGETS: ("targets1", "targets3")}
    live.trust.files = RepositoryFiles(
        {name: data for name, data in live.trust.files.metadata.items() if name != "2.targets.json"},
        live.trust.files.targets,
    )
    live.trust.publish()
    assert (await live.publish()).targets_version == 2


async def test_another_file_under_a_known_name_is_refused(live: LiveCoordinator) -> None:
    live.trust.now = live.clock()
    live.trust.files = RepositoryFiles({metadata_name(ROOT, 1): live.trust.root})
    live.trust.directory = live.trust.directory.model_copy(update={"version": 2})
    live.trust.publish()  # "1.targets.json" again, with other content and good signatures
    assert await refused(live.publish()) is Reason.TRUST_ROLLBACK


async def test_a_directory_that_changed_without_a_new_version_is_refused(live: LiveCoordinator) -> None:
    live.trust.now = live.clock()
    live.trust.directory = live.trust.directory.model_copy(update={"witnesses": ()})
    live.trust.publish()
    assert await refused(live.publish()) is Reason.TRUST_ROLLBACK


async def test_a_repository_that_lacks_a_file_is_refused(live: LiveCoordinator) -> None:
    live.trust.now = live.clock()
    live.trust.bundles = [live.trust.bundle({**live.trust.bundles[0].files, "notes.txt": b"new"})]
    whole = live.trust.publish()
    lacking = {k: v for k, v in whole.targets.items() if k != hashlib.sha256(b"new").hexdigest()}
    assert await refused(live.publish_files(RepositoryFiles(whole.metadata, lacking))) is Reason.TRUST_UNKNOWN


async def test_the_directory_of_another_federation_or_log_is_refused(live: LiveCoordinator) -> None:
    for change, reason in (
        ({"federation": "other"}, Reason.TRUST_INVALID),
        ({"coordinator_log_key": "A" * 43 + "="}, Reason.KEY_INVALID),
    ):
        live.trust.now = live.clock()
        before = live.trust.files, live.trust.directory
        live.trust.change(**change)
        assert await refused(live.publish()) is reason
        live.trust.files, live.trust.directory = before


async def test_a_new_root_follows_only_from_the_one_before(live: LiveCoordinator) -> None:
    live.trust.now = live.clock()
    before = live.trust.files
    live.trust.publish_root(live.trust.plan(), ("root1",))
    assert await refused(live.publish()) is Reason.TRUST_THRESHOLD
    live.trust.files = before
    second = live.trust.publish_root(live.trust.plan(), ("root2", "root3"))
    assert (await live.publish()).root_version == 2
    assert await metadata(live, "root") == second


def request(name: str, chunk: bytes) -> admin_service_pb2.PublishTrustRequest:
    return admin_service_pb2.PublishTrustRequest(name=name, chunk=chunk)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([request("", b"x")], Reason.MALFORMED),
        ([request("metadata/timestamp.json", b"x")], Reason.MALFORMED),
        ([request("metadata/2.snapshot.json", b"x")], Reason.MALFORMED),
        ([request("metadata/0.root.json", b"x")], Reason.MALFORMED),
        ([request("../2.root.json", b"x")], Reason.MALFORMED),
        ([request("metadata/2.root.json", b"x"), request("metadata/2.root.json", b"x")], Reason.MALFORMED),
        ([request("targets/" + "0" * 64, b"x")], Reason.TRUST_INVALID),
        ([request("metadata/2.targets.json", b"x" * (300 << 10))], Reason.MESSAGE_TOO_LARGE),
        ([request("metadata/2.targets.json", b"{}")], Reason.TRUST_INVALID),
        ([request("metadata/2.root.json", b"\xff")], Reason.TRUST_INVALID),
        ([request("metadata/2.targets.json", b"[" * 10_000)], Reason.TRUST_INVALID),
    ],
)
async def test_what_is_no_publication_is_refused(live: LiveCoordinator, messages: list[Any], reason: Reason) -> None:
    publish = AdminServiceStub(live.people).PublishTrust
    call = publish(iter(messages), metadata=live.bearer(OLGA), timeout=CALL_SECONDS)
    assert await refused(call) is reason
    assert live.foundation.database.run_sync(state_in_force).targets_version == 1


async def test_a_publication_has_a_bound(live: LiveCoordinator) -> None:
    chunk = b"x" * (256 << 10)
    messages = [request("metadata/2.targets.json", chunk), *(request("", chunk) for _ in range(300))]
    publish = AdminServiceStub(live.people).PublishTrust
    call = publish(iter(messages), metadata=live.bearer(OLGA), timeout=CALL_SECONDS)
    assert await refused(call) is Reason.MALFORMED


async def test_a_timestamp_is_renewed_without_anybody_and_a_snapshot_before_it_expires(live: LiveCoordinator) -> None:
    database, online = live.foundation.database, live.trust.online
    first = database.run_sync(state_in_force)
    hour = database.run_sync(lambda session: renew_timestamp(session, online, live.clock() + timedelta(hours=1)))
    assert (hour.timestamp_version, hour.snapshot_version) == (first.timestamp_version + 1, first.snapshot_version)
    later = live.clock() + timedelta(days=4)
    days = database.run_sync(lambda session: renew_timestamp(session, online, later))
    assert days.snapshot_version == first.snapshot_version + 1
    view = verify_repository(await mirrored(live), trusted_root=live.trust.root, now=later + timedelta(hours=23))
    assert view.timestamp_version == days.timestamp_version
    assert days.targets_version == first.targets_version


async def test_a_node_is_given_the_root_that_its_invitation_names(live: LiveCoordinator) -> None:
    live.trust.now = live.clock()
    second = live.trust.publish_root(live.trust.plan(), ("root1", "root2"))
    await live.publish()
    stub = EnrolmentServiceStub(live.channel("enrolment"))
    for node, root in (("FI", live.trust.root), ("ES", second)):
        await live.invite(node)
        message = enrolment_service_pb2.EnrolRequest(
            token_secret=await secret_of(live, node),
            csr_pem=NodeKey().csr(),
            trust_root_digest=hashlib.sha256(root).digest(),
        )
        assert (await stub.Enrol(message, timeout=CALL_SECONDS)).trust_root == root


async def secret_of(live: LiveCoordinator, node: str) -> str:
    return parse_token(await live.invite(node)).secret


async def test_a_root_that_the_coordinator_does_not_have_uses_no_invitation_up(live: LiveCoordinator) -> None:
    secret = await secret_of(live, "FI")
    stub = EnrolmentServiceStub(live.channel("enrolment"))
    key = NodeKey()
    for digest in (b"", b"x" * 32, b"x" * 31):
        message = enrolment_service_pb2.EnrolRequest(
            token_secret=secret, csr_pem=NodeKey().csr(), trust_root_digest=digest
        )
        assert await refused(stub.Enrol(message, timeout=CALL_SECONDS)) is Reason.TRUST_UNKNOWN
    message = enrolment_service_pb2.EnrolRequest(
        token_secret=secret, csr_pem=key.csr(), trust_root_digest=live.root_digest
    )
    assert (await stub.Enrol(message, timeout=CALL_SECONDS)).node == "FI"
