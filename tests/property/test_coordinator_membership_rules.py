"""The state machine of a node's membership, and the rules of names, pages and versions."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.pages import page_of, token_of
from coordinator.domain.membership import NODE_TRANSITIONS, NodeEvent, NodeState, check_admitted, next_node_state
from coordinator.services.nodes import invitation_life, invitation_secret
from coordinator.store.catalogue import _rank
from hansa.contract.enrolment import Invitation, parse_token
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId
from hansa.v1 import admin_service_pb2, types_pb2

EVENTS = st.lists(st.sampled_from(list(NodeEvent)), max_size=30)
KEY = b"k" * 32


def run(events: list[NodeEvent]) -> list[NodeState]:
    """Return the states that a node goes through; illegal events are dropped."""
    states = [NodeState.INVITED]
    for event in events:
        if (states[-1], event) in NODE_TRANSITIONS:
            states.append(next_node_state(states[-1], event))
    return states


def test_the_wire_knows_exactly_these_states() -> None:
    assert {state.value for state in NodeState} == set(types_pb2.Node.State.keys()) - {"STATE_UNSPECIFIED"}


@given(EVENTS)
def test_a_node_is_admitted_only_after_its_confirmation(events: list[NodeEvent]) -> None:
    states = run(events)
    if NodeState.ACTIVE in states:
        assert NodeState.PENDING_CONFIRMATION in states[: states.index(NodeState.ACTIVE)]


@given(EVENTS, EVENTS)
def test_a_revocation_is_final(before: list[NodeEvent], after: list[NodeEvent]) -> None:
    assert run([*before, NodeEvent.REVOKE, *after])[-1] is NodeState.REVOKED


@given(EVENTS)
def test_a_node_that_was_confirmed_is_never_invited_but_for_a_new_certificate(events: list[NodeEvent]) -> None:
    states = run([event for event in events if event is not NodeEvent.INVITE_AGAIN])
    if NodeState.ACTIVE in states:
        assert NodeState.INVITED not in states[states.index(NodeState.ACTIVE) :]


@given(EVENTS)
def test_a_member_that_is_invited_again_is_admitted_only_after_another_confirmation(after: list[NodeEvent]) -> None:
    begin = [NodeEvent.REDEEM, NodeEvent.CONFIRM, NodeEvent.INVITE_AGAIN]
    states = run([*begin, *(event for event in after if event is not NodeEvent.CONFIRM)])
    assert states[2:4] == [NodeState.ACTIVE, NodeState.INVITED]
    assert NodeState.ACTIVE not in states[3:]


@pytest.mark.parametrize("state", sorted(set(NodeState) - {NodeState.ACTIVE}))
def test_a_node_that_is_set_apart_is_not_let_back_in_by_an_invitation(state: NodeState) -> None:
    assert (state, NodeEvent.INVITE_AGAIN) not in NODE_TRANSITIONS


@pytest.mark.parametrize("state", list(NodeState))
def test_of_all_states_only_active_is_let_in(state: NodeState) -> None:
    if state is NodeState.ACTIVE:
        check_admitted(state)
        return
    with pytest.raises(HansaError):
        check_admitted(state)


@given(st.sampled_from(list(NodeState)), st.sampled_from(list(NodeEvent)))
def test_what_the_table_lacks_is_a_conflict(state: NodeState, event: NodeEvent) -> None:
    if (state, event) in NODE_TRANSITIONS:
        assert next_node_state(state, event) is NODE_TRANSITIONS[state, event]
        return
    with pytest.raises(HansaError) as caught:
        next_node_state(state, event)
    assert caught.value.reason is Reason.NODE_STATE_CONFLICT


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=100), st.integers(0, 10_000))
def test_a_page_token_leads_back_to_its_key(last: str, size: int) -> None:
    page = page_of(admin_service_pb2.ListAuditRequest(page_token=token_of(last), page_size=size))
    assert page.after == last
    assert page.limit == (min(size, 200) if size else 50)


@given(st.text(max_size=60))
def test_a_page_token_from_elsewhere_is_read_or_refused_and_nothing_else(token: str) -> None:
    try:
        page_of(admin_service_pb2.ListAuditRequest(page_token=token))
    except HansaError as error:
        assert error.reason is Reason.MALFORMED  # noqa: PT017 - either outcome is right


@given(st.lists(st.lists(st.integers(0, 9999), min_size=2, max_size=3), min_size=2, max_size=8))
def test_versions_sort_as_their_numbers_do(versions: list[list[int]]) -> None:
    texts = [".".join(map(str, version)) for version in versions]
    assert sorted(texts, key=_rank) == [".".join(map(str, version)) for version in sorted(versions)]


@given(st.text(max_size=40), st.text(max_size=40))
def test_each_request_has_a_secret_of_its_own_that_fits_a_token(one: str, other: str) -> None:
    secret = invitation_secret(KEY, caller="operator:olga", request_id=one)
    invitation = Invitation(NodeId("FI"), secret, b"f" * 32, "127.0.0.1:1", b"r" * 32)
    assert parse_token(invitation.token()).secret == secret
    assert (secret == invitation_secret(KEY, caller="operator:olga", request_id=other)) == (one == other)
    assert secret != invitation_secret(b"x" * 32, caller="operator:olga", request_id=one)
    assert secret != invitation_secret(KEY, caller="operator:oscar", request_id=one)


@given(st.integers(0, 2**32 - 1))
def test_an_invitation_lives_at_most_a_week(seconds: int) -> None:
    try:
        life = invitation_life(seconds)
    except HansaError:
        assert seconds > timedelta(days=7).total_seconds()
        return
    assert timedelta(0) < life <= timedelta(days=7)
