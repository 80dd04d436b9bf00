"""Every method has its rules, and the limits hold."""

from __future__ import annotations

import pytest

from coordinator.api.guard import address_of
from coordinator.api.method_policy import METHOD_POLICY
from coordinator.api.rates import Memory, RateLimiter, Slots
from coordinator.domain.authorisation import OPERATORS, OVERSEERS, Outsider, Ownership, is_allowed
from hansa.contract.directory import Role
from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import MESSAGE_BYTES
from hansa.v1 import (
    admin_service_pb2,
    catalogue_service_pb2,
    enrolment_service_pb2,
    job_service_pb2,
    node_service_pb2,
    trust_service_pb2,
)

FILES = (
    admin_service_pb2,
    catalogue_service_pb2,
    enrolment_service_pb2,
    job_service_pb2,
    node_service_pb2,
    trust_service_pb2,
)
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
# Safe to repeat by what their messages carry: a secret with its key, numbered frames, a digest, versions.
WITHOUT_REQUEST_ID = {
    "/hansa.v1.AdminService/PublishTrust",
    "/hansa.v1.EnrolmentService/Enrol",
    "/hansa.v1.NodeService/Connect",
    "/hansa.v1.NodeService/UploadSummary",
}


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    assert set(METHOD_POLICY) == set(METHODS)


@pytest.mark.parametrize("method", sorted(METHOD_POLICY))
def test_every_row_admits_somebody_and_bounds_size_and_rate(method: str) -> None:
    policy = METHOD_POLICY[method]
    assert policy.rule.roles
    assert 0 < policy.max_bytes <= MESSAGE_BYTES
    assert 0 < policy.per_minute <= 3000


@pytest.mark.parametrize("method", sorted(METHOD_POLICY))
def test_a_method_changes_something_exactly_if_its_request_has_an_id(method: str) -> None:
    has_id = "request_id" in METHODS[method].input_type.fields_by_name
    assert METHOD_POLICY[method].rule.changes == (has_id or method in WITHOUT_REQUEST_ID)


def test_the_operators_service_is_for_operators_and_auditors_and_the_nodes_for_nodes() -> None:
    for method, policy in METHOD_POLICY.items():
        if "AdminService" in method:
            assert policy.rule.roles in (OPERATORS, OVERSEERS)
        if "NodeService" in method:
            assert policy.rule.roles == {Outsider.NODE}


@pytest.mark.parametrize("method", sorted(METHOD_POLICY))
def test_an_auditor_changes_nothing_whatever_a_row_says(method: str) -> None:
    policy = METHOD_POLICY[method]
    if policy.rule.changes:
        assert Role.AUDITOR not in policy.rule.roles
        assert not is_allowed({Role.AUDITOR}, policy.rule, Ownership.OPEN)


def test_no_method_is_open_to_people_and_to_strangers_alike() -> None:
    for policy in METHOD_POLICY.values():
        if Outsider.GUEST in policy.rule.roles:
            assert policy.rule.roles == {Outsider.GUEST}


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_caller_who_calls_too_often_is_refused_and_later_served_again() -> None:
    ticks = Ticks()
    rates = RateLimiter(ticks)
    for _ in range(6):
        rates.check("a", "m", per_minute=6)
    with pytest.raises(HansaError) as caught:
        rates.check("a", "m", per_minute=6)
    assert caught.value.reason is Reason.RATE_LIMITED
    ticks.now = 10.0
    rates.check("a", "m", per_minute=6)
    with pytest.raises(HansaError):
        rates.check("a", "m", per_minute=6)


def test_a_refusal_says_when_there_is_a_token_again() -> None:
    ticks = Ticks()
    rates = RateLimiter(ticks)
    rates.check("a", "m", per_minute=1)
    with pytest.raises(HansaError) as caught:
        rates.check("a", "m", per_minute=1)
    ticks.now += caught.value.retry_seconds
    rates.check("a", "m", per_minute=1)


def test_slots_are_given_back_and_one_place_takes_none_of_another() -> None:
    slots = Slots()
    with slots.taking("a", most=1), slots.taking("b", most=1):
        with pytest.raises(HansaError) as caught, slots.taking("a", most=1, reason=Reason.OVERLOADED):
            pass
        assert caught.value.reason is Reason.OVERLOADED
        assert caught.value.retry_seconds > 0
    with slots.taking("a", most=1):
        pass


def test_uploads_together_take_no_more_memory_than_there_is() -> None:
    memory = Memory(100)
    with memory.holding(60):
        with pytest.raises(HansaError) as caught, memory.holding(41):
            pass
        assert caught.value.reason is Reason.OVERLOADED
        with memory.holding(40):
            pass
    with memory.holding(100):
        pass


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:41234", "ipv4:192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:41234", "ipv6:2001:db8:1:2::"),
        ("ipv6:[2001:db8:1:2:ffff::1]:9", "ipv6:2001:db8:1:2::"),
        ("ipv6:[fe80::1%25eth0]:9", "ipv6:fe80::"),
        ("unix:", "unix:"),
    ],
)
def test_a_caller_is_known_by_the_address_that_costs_something(peer: str, address: str) -> None:
    assert address_of(peer) == address


def test_one_callers_zeal_costs_no_other_caller_and_no_other_method() -> None:
    rates = RateLimiter(Ticks())
    rates.check("a", "m", per_minute=1)
    rates.check("b", "m", per_minute=1)
    rates.check("a", "n", per_minute=1)
