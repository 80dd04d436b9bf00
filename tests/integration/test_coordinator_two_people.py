"""Invitations, resumption and revocation take two operators."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from hansa.contract.directory import Role
from hansa.contract.errors import Reason
from hansa.sdk.tokens import mint
from hansa.v1 import admin_service_pb2 as wire
from hansa.v1 import catalogue_service_pb2, types_pb2
from tests.support.live_coordinator import OLGA, OSCAR, LiveCoordinator, info_of, live_coordinator, reason_of
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


async def refused(call: Any) -> Reason | None:
    return reason_of(await refusal(call))


async def proposals(live: LiveCoordinator) -> list[wire.Proposal]:
    return list((await live.admin("ListProposals", wire.ListProposalsRequest())).proposals)


async def states(live: LiveCoordinator) -> dict[str, str]:
    answer = await live.catalogue("ListNodes", catalogue_service_pb2.ListNodesRequest())
    return {node.node: types_pb2.Node.State.Name(node.state) for node in answer.nodes}


def invite(node: str = "FI", seconds: int = 0) -> wire.InviteNodeRequest:
    return wire.InviteNodeRequest(request_id=uuid4().hex, node=node, valid_seconds=seconds)


async def test_the_first_operators_call_waits_and_the_second_ones_is_carried_out(live: LiveCoordinator) -> None:
    error = await refusal(live.admin("InviteNode", invite()))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    info = info_of(error)
    assert info is not None
    assert info.reason == Reason.PENDING_SECOND
    (proposal,) = await proposals(live)
    assert (proposal.proposal_id, proposal.method, proposal.proposed_by) == (info.metadata["field"], "InviteNode", OLGA)
    assert proposal.subject == "FI for 1800 s"
    assert "A second federation operator has to run the same command" in (error.details() or "")
    assert await states(live) == {}
    answer = await live.admin("InviteNode", invite(), OSCAR)
    assert answer.secret
    assert answer.endpoint == live.address("enrolment")
    assert await proposals(live) == []
    assert await states(live) == {"FI": "INVITED"}


async def test_an_operator_is_no_second_of_their_own(live: LiveCoordinator) -> None:
    first = invite()
    for request in (first, first, invite()):
        assert await refused(live.admin("InviteNode", request)) is Reason.PENDING_SECOND
    assert len(await proposals(live)) == 1
    assert await states(live) == {}


async def test_other_arguments_are_another_call(live: LiveCoordinator) -> None:
    assert await refused(live.admin("InviteNode", invite("FI"))) is Reason.PENDING_SECOND
    assert await refused(live.admin("InviteNode", invite("ES"), OSCAR)) is Reason.PENDING_SECOND
    assert await refused(live.admin("InviteNode", invite("FI", 60), OSCAR)) is Reason.PENDING_SECOND
    assert len(await proposals(live)) == 3
    assert await states(live) == {}


async def test_what_is_asked_of_one_method_is_no_second_for_another(live: LiveCoordinator) -> None:
    await live.join("FI")
    await live.admin("SuspendNode", wire.SuspendNodeRequest(request_id="s", node="FI"))
    resume = wire.ResumeNodeRequest(request_id="1", node="FI")
    revoke = wire.RevokeNodeRequest(request_id="2", node="FI")
    assert await refused(live.admin("ResumeNode", resume)) is Reason.PENDING_SECOND
    assert await refused(live.admin("RevokeNode", revoke, OSCAR)) is Reason.PENDING_SECOND
    assert await states(live) == {"FI": "SUSPENDED"}
    assert (await live.admin("RevokeNode", revoke)).node.state == types_pb2.Node.REVOKED


async def test_a_repeat_of_the_second_call_gets_the_first_answer(live: LiveCoordinator) -> None:
    await refused(live.admin("InviteNode", invite()))
    second = invite()
    answer = await live.admin("InviteNode", second, OSCAR)
    assert await live.admin("InviteNode", second, OSCAR) == answer
    assert await proposals(live) == []


async def test_a_call_that_is_refused_anyway_waits_for_nobody(live: LiveCoordinator) -> None:
    await live.join("FI")
    assert await refused(live.admin("InviteNode", invite())) is Reason.NODE_EXISTS
    resume = wire.ResumeNodeRequest(request_id="r", node="FI")
    assert await refused(live.admin("ResumeNode", resume)) is Reason.NODE_STATE_CONFLICT
    unknown = wire.RevokeNodeRequest(request_id="u", node="SE")
    assert await refused(live.admin("RevokeNode", unknown)) is Reason.NODE_UNKNOWN
    assert await proposals(live) == []


async def test_a_proposal_ends_after_a_day(live: LiveCoordinator) -> None:
    await refused(live.admin("InviteNode", invite()))
    live.clock.shift = timedelta(hours=24)
    live_token(live)
    assert await refused(live.admin("InviteNode", invite(), OSCAR)) is Reason.PENDING_SECOND
    (proposal,) = await proposals(live)
    assert proposal.proposed_by == OSCAR
    assert "proposal_expired" in await actions(live)


def live_token(live: LiveCoordinator) -> None:
    """Let tokens be of the coordinator's shifted time."""
    live.token = lambda person, **_: mint(  # type: ignore[method-assign]
        person, "demo", live.keys[person], now=live.clock(), jti=uuid4().hex
    )


async def actions(live: LiveCoordinator) -> list[str]:
    return [entry.action for entry in (await live.admin("ListAudit", wire.ListAuditRequest())).entries]


async def test_a_proposal_is_taken_back_by_any_operator_and_is_then_worth_nothing(live: LiveCoordinator) -> None:
    await refused(live.admin("InviteNode", invite()))
    (proposal,) = await proposals(live)
    request = wire.WithdrawProposalRequest(request_id="w", proposal_id=proposal.proposal_id)
    assert (await live.admin("WithdrawProposal", request, OSCAR)).proposal == proposal
    again = wire.WithdrawProposalRequest(request_id="x", proposal_id=proposal.proposal_id)
    assert await refused(live.admin("WithdrawProposal", again)) is Reason.PROPOSAL_UNKNOWN
    assert await refused(live.admin("InviteNode", invite(), OSCAR)) is Reason.PENDING_SECOND
    assert (await actions(live))[:3] == ["proposal_made", "proposal_withdrawn", "proposal_made"]


async def test_the_proposal_of_an_operator_who_is_none_any_more_is_no_half_of_two(live: LiveCoordinator) -> None:
    await refused(live.admin("InviteNode", invite()))
    people = live.trust.directory.people
    auditor = {"roles": (Role.AUDITOR,)}
    live.trust.change(people=tuple(p.model_copy(update=auditor) if p.name == OLGA else p for p in people))
    await live.publish(OSCAR)
    assert await refused(live.admin("InviteNode", invite(), OSCAR)) is Reason.PENDING_SECOND
    entries = (await live.admin("ListAudit", wire.ListAuditRequest(), OSCAR)).entries
    assert [entry.action for entry in entries][:2] == ["proposal_made", "proposal_withdrawn"]
    (proposal,) = (await live.admin("ListProposals", wire.ListProposalsRequest(), OSCAR)).proposals
    assert proposal.proposed_by == OSCAR


async def test_one_person_suffices_to_suspend(live: LiveCoordinator) -> None:
    await live.join("FI")
    await live.admin("SuspendNode", wire.SuspendNodeRequest(request_id="s", node="FI", reason="alarm"))
    assert await states(live) == {"FI": "SUSPENDED"}
