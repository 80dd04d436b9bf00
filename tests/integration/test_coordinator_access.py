"""Who gets in at the people's listener, over real TLS."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message_factory import GetMessageClass

from coordinator.api.method_policy import METHOD_POLICY
from coordinator.domain.authorisation import PEOPLE
from hansa.contract.directory import Role
from hansa.contract.errors import Reason
from hansa.contract.raw_keys import key_digest
from hansa.v1 import admin_service_pb2, catalogue_service_pb2, job_service_pb2
from hansa.v1.catalogue_service_pb2_grpc import CatalogueServiceStub
from hansa.v1.job_service_pb2_grpc import JobServiceStub
from tests.support.live_coordinator import (
    AUDITOR,
    CALL_SECONDS,
    FEDERATION,
    OLGA,
    RITA,
    LiveCoordinator,
    info_of,
    live_coordinator,
    reason_of,
)

LIST = catalogue_service_pb2.ListNodesRequest()


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveCoordinator]:
    async with live_coordinator(tmp_path / "state") as coordinator:
        yield coordinator


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    good = {"iss": RITA, "aud": f"hansa:{FEDERATION}", "iat": now, "exp": now + 60, "jti": "x"}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def signed(key: Any, *, headers: dict[str, Any] | None = None, algorithm: str = "EdDSA", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers={"kid": RITA, **(headers or {})})


def raw_signed(key: Ed25519PrivateKey, payload: bytes) -> str:
    def encode(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    head = encode(json.dumps({"alg": "EdDSA", "typ": "JWT", "kid": RITA}).encode()) + b"." + encode(payload)
    return (head + b"." + encode(key.sign(head))).decode()


NOW = int(time.time())
Forge = Callable[[Ed25519PrivateKey], str]
FORGERIES: dict[str, Forge] = {
    "another key": lambda _: signed(Ed25519PrivateKey.generate()),
    "an expired one": lambda key: signed(key, iat=NOW - 120, exp=NOW - 60),
    "one of the future": lambda key: signed(key, iat=NOW + 3600, exp=NOW + 3660),
    "one that lives too long": lambda key: signed(key, iat=NOW, exp=NOW + 61 + 3600),
    "one that ends before it begins": lambda key: signed(key, iat=NOW + 3, exp=NOW + 2),
    "another federation": lambda key: signed(key, aud="hansa:other"),
    "several audiences": lambda key: signed(key, aud=[f"hansa:{FEDERATION}", "hansa:other"]),
    "another issuer": lambda key: signed(key, iss=OLGA),
    "another name": lambda key: signed(key, iss=OLGA, headers={"kid": OLGA}),
    "nobody we know": lambda key: signed(key, iss="eve", headers={"kid": "eve"}),
    "a name that is none": lambda key: signed(key, iss="../x", headers={"kid": "../x"}),
    "no end": lambda key: signed(key, exp=None),
    "no id": lambda key: signed(key, jti=None),
    "an id that is no text": lambda key: signed(key, jti=7),
    "a claim we do not know": lambda key: signed(key, role="operator"),
    "an end as text": lambda key: signed(key, exp=str(NOW + 60)),
    "an end as a fraction": lambda key: signed(key, exp=NOW + 59.5),
    "a key of its own": lambda key: signed(key, headers={"jwk": {"kty": "OKP"}}),
    "a place of keys": lambda key: signed(key, headers={"jku": "https://localhost/keys"}),
    "no signature": lambda _: jwt.encode(claims(), "", algorithm="none", headers={"kid": RITA}),
    "a shared secret": lambda _: signed("0" * 32, algorithm="HS256"),
    "a claim twice": lambda key: raw_signed(key, json.dumps(claims()).encode()[:-1] + b',"jti":"y"}'),
    "deep nesting": lambda key: raw_signed(key, b"[" * 1500 + b"]" * 1500),
    "no JSON": lambda key: raw_signed(key, b"\xff\xfe"),
    "no token": lambda _: "x",
    "too many parts": lambda key: signed(key) + ".x",
}


async def test_a_person_is_known_by_a_token_of_the_registered_key(live: LiveCoordinator) -> None:
    good = signed(live.keys[RITA])
    call = CatalogueServiceStub(live.people).ListNodes
    answer = await call(LIST, metadata=(("authorization", f"Bearer {good}"),), timeout=CALL_SECONDS)
    assert list(answer.nodes) == []


async def test_every_forged_token_is_refused_alike(live: LiveCoordinator) -> None:
    call = CatalogueServiceStub(live.people).ListNodes
    for name, forge in FORGERIES.items():
        token = forge(live.keys[RITA])
        error = await refusal(call(LIST, metadata=(("authorization", f"Bearer {token}"),), timeout=CALL_SECONDS))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED, name
        assert reason_of(error) is Reason.UNAUTHENTICATED, name


async def test_a_call_with_no_token_or_with_two_is_refused(live: LiveCoordinator) -> None:
    call = CatalogueServiceStub(live.people).ListNodes
    good = f"Bearer {signed(live.keys[RITA])}"
    for metadata in ((), (("authorization", good), ("authorization", good)), (("authorization", good[7:]),)):
        assert reason_of(await refusal(call(LIST, metadata=metadata, timeout=CALL_SECONDS))) is Reason.UNAUTHENTICATED


async def test_a_token_is_not_valid_a_minute_later(live: LiveCoordinator) -> None:
    good = (("authorization", f"Bearer {signed(live.keys[RITA])}"),)
    live.clock.shift = timedelta(seconds=70)
    call = CatalogueServiceStub(live.people).ListNodes
    error = await refusal(call(LIST, metadata=good, timeout=CALL_SECONDS))
    assert reason_of(error) is Reason.UNAUTHENTICATED
    assert "clock" in (error.details() or "")


async def test_no_method_of_operators_is_open_to_researchers(live: LiveCoordinator) -> None:
    service = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]
    for method in service.methods:
        empty: Any = GetMessageClass(method.input_type)()
        message = iter([empty]) if method.client_streaming else empty
        error = await refusal(live.admin(method.name, message, RITA))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED, method.name
        assert reason_of(error) is Reason.PERMISSION_DENIED, method.name


async def test_operators_do_not_submit_jobs(live: LiveCoordinator) -> None:
    request = job_service_pb2.SubmitJobRequest(request_id="r")
    error = await refusal(
        JobServiceStub(live.people).SubmitJob(request, metadata=live.bearer(OLGA), timeout=CALL_SECONDS)
    )
    assert reason_of(error) is Reason.PERMISSION_DENIED


async def test_the_method_of_another_listener_is_not_there(live: LiveCoordinator) -> None:
    others = [method for method, policy in METHOD_POLICY.items() if not policy.rule.roles & PEOPLE]
    for method in others:
        call: Any = live.people.unary_unary(method)
        error = await refusal(call(b"", metadata=live.bearer(OLGA), timeout=CALL_SECONDS))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED, method


async def test_plaintext_is_refused_at_every_listener(live: LiveCoordinator) -> None:
    for port in ("people", "enrolment", "node"):
        async with grpc.aio.insecure_channel(live.address(port)) as channel:
            error = await refusal(CatalogueServiceStub(channel).ListNodes(LIST, timeout=CALL_SECONDS))
            assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_that_trusts_the_node_ca_does_not_take_the_server_for_ours(live: LiveCoordinator) -> None:
    other = grpc.ssl_channel_credentials(live.foundation.keys.node_ca.certificate_pem)
    channel = live.channel("people", other)
    call = CatalogueServiceStub(channel).ListNodes(LIST, metadata=live.bearer(RITA), timeout=CALL_SECONDS)
    assert (await refusal(call)).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_message_that_cannot_be_read_is_told_so_and_nothing_more(live: LiveCoordinator) -> None:
    call: Any = live.people.unary_unary("/hansa.v1.CatalogueService/GetAnalysis")
    for garbage in (b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f"):
        error = await refusal(call(garbage, metadata=live.bearer(RITA), timeout=CALL_SECONDS))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "The request cannot be read."
        assert reason_of(error) is Reason.MALFORMED


async def test_a_message_over_the_methods_size_is_refused(live: LiveCoordinator) -> None:
    request = catalogue_service_pb2.GetAnalysisRequest(name="a" * 10_000)
    error = await refusal(live.catalogue("GetAnalysis", request, RITA))
    assert reason_of(error) is Reason.MESSAGE_TOO_LARGE


async def test_an_unreadable_message_of_a_stranger_is_refused_for_the_stranger_first(live: LiveCoordinator) -> None:
    call: Any = live.people.unary_unary("/hansa.v1.CatalogueService/GetAnalysis")
    assert reason_of(await refusal(call(b"\xff", timeout=CALL_SECONDS))) is Reason.UNAUTHENTICATED


async def test_a_refusal_names_the_field_at_fault(live: LiveCoordinator) -> None:
    requests = {
        "node": admin_service_pb2.InviteNodeRequest(request_id="1", node="fi"),
        "valid_seconds": admin_service_pb2.InviteNodeRequest(request_id="2", node="FI", valid_seconds=10**6),
        "request_id": admin_service_pb2.InviteNodeRequest(node="FI"),
    }
    for field, request in requests.items():
        info = info_of(await refusal(live.admin("InviteNode", request)))
        assert info is not None
        assert info.metadata["field"] == field


async def test_a_page_token_that_was_made_up_is_refused(live: LiveCoordinator) -> None:
    for token in ("x", "AAAA", base64.urlsafe_b64encode(b"-1").decode(), "A" * 4096):
        request = admin_service_pb2.ListAuditRequest(page_token=token)
        assert reason_of(await refusal(live.admin("ListAudit", request))) is Reason.MALFORMED


async def test_pages_of_the_audit_list_go_from_the_newest_to_the_first_act(live: LiveCoordinator) -> None:
    for number in range(3):
        await live.invite(f"N{number}")
    seen: list[int] = []
    token = ""
    while True:
        page = await live.admin("ListAudit", admin_service_pb2.ListAuditRequest(page_size=3, page_token=token), AUDITOR)
        seen += [entry.index for entry in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert seen == list(range(10, 0, -1))


async def test_the_same_admin_call_again_gets_the_first_answer(live: LiveCoordinator) -> None:
    await live.join("FI")
    request = admin_service_pb2.SuspendNodeRequest(request_id="once", node="FI", reason="maintenance")
    assert await live.admin("SuspendNode", request) == await live.admin("SuspendNode", request)
    request.reason = "other"
    assert reason_of(await refusal(live.admin("SuspendNode", request))) is Reason.IDEMPOTENCY_MISMATCH


async def test_people_are_those_of_the_directory_with_all_their_roles(live: LiveCoordinator) -> None:
    answer = await live.admin("ListPersons", admin_service_pb2.ListPersonsRequest(page_size=200))
    listed = {one.name: (one.organisation, list(one.roles), one.key_fingerprint) for one in answer.persons}
    assert listed == {
        person.name: (person.organisation, list(person.roles), key_digest(person.signing_key))
        for person in live.trust.directory.people
    }


async def test_an_auditor_reads_the_record_and_changes_nothing(live: LiveCoordinator) -> None:
    await live.admin("ListAudit", admin_service_pb2.ListAuditRequest(), AUDITOR)
    await live.catalogue("ListNodes", LIST, AUDITOR)
    stub = JobServiceStub(live.people)
    jobs = await stub.ListJobs(job_service_pb2.ListJobsRequest(), metadata=live.bearer(AUDITOR), timeout=CALL_SECONDS)
    assert list(jobs.jobs) == []
    for method, policy in METHOD_POLICY.items():
        if policy.rule.changes and policy.rule.roles & PEOPLE:
            call: Any = live.people.unary_unary(method)
            error = await refusal(call(b"", metadata=live.bearer(AUDITOR), timeout=CALL_SECONDS))
            assert reason_of(error) is Reason.PERMISSION_DENIED, method


@pytest.mark.parametrize("person", ["rev1", "holder-fi", "checker-fi", "operator-fi"])
async def test_people_of_a_node_and_reviewers_look_things_up_and_no_more(live: LiveCoordinator, person: str) -> None:
    await live.catalogue("ListNodes", LIST, person)
    for method, policy in METHOD_POLICY.items():
        if policy.rule.roles & PEOPLE and "Catalogue" not in method and "Trust" not in method.split("/")[1]:
            call: Any = live.people.unary_unary(method)
            error = await refusal(call(b"", metadata=live.bearer(person), timeout=CALL_SECONDS))
            assert reason_of(error) is Reason.PERMISSION_DENIED, method


async def test_a_person_who_left_the_directory_is_refused_at_once(live: LiveCoordinator) -> None:
    await live.catalogue("ListNodes", LIST, "bob")
    people = tuple(person for person in live.trust.directory.people if person.name != "bob")
    (project,) = live.trust.directory.projects
    live.trust.now = live.clock()
    live.trust.change(people=people, projects=(project.model_copy(update={"researchers": ("ada",)}),))
    await live.publish()
    assert reason_of(await refusal(live.catalogue("ListNodes", LIST, "bob"))) is Reason.UNAUTHENTICATED


async def test_a_person_with_two_roles_has_the_rights_of_both(live: LiveCoordinator) -> None:
    both = [
        person.model_copy(update={"roles": (Role.RESEARCHER, Role.FEDERATION_OPERATOR)})
        if person.name == "bob"
        else person
        for person in live.trust.directory.people
    ]
    live.trust.now = live.clock()
    live.trust.change(people=tuple(both))
    await live.publish()
    await live.admin("ListPersons", admin_service_pb2.ListPersonsRequest(), "bob")
    request = job_service_pb2.SubmitJobRequest(request_id="r")
    submit = JobServiceStub(live.people).SubmitJob
    error = await refusal(submit(request, metadata=live.bearer("bob"), timeout=CALL_SECONDS))
    assert reason_of(error) is Reason.ENVELOPE_INVALID
