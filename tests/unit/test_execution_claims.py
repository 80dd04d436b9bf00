"""How a worker claims: with one token for one message, and a ticket in hand as long as it is at it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from node_agent.execution.agent_client import AgentAwayError, AgentClient, SupersededError
from node_agent.execution.pools import RunExecutor
from node_agent.execution.presence import Premises, held_card
from node_agent.execution.runner import Runner
from node_agent.run_rules import WorkerSign
from tests.unit.test_execution_presence import run as run_facts

RUN_ID = "5" * 32


class Claims:
    """An agent that is away for some claims, then refuses; it notes the tokens."""

    def __init__(self, away: int, look: Callable[[str], None]) -> None:
        self.tokens: list[str] = []
        self._away, self._look = away, look

    def claim(self, _run_id: str, _worker: str, token: str) -> Any:
        self.tokens.append(token)
        self._look(token)
        if len(self.tokens) <= self._away:
            raise AgentAwayError("claim")
        raise SupersededError("claim")


@pytest.fixture
def take(tmp_path: Path) -> Callable[[Claims], None]:
    (tmp_path / "workers").mkdir()

    def taken(agent: Claims) -> None:
        executor = RunExecutor(
            agent=cast("AgentClient", agent),
            runner=cast("Runner", None),
            worker="worker-1",
            tickets=tmp_path / "workers",
        )
        executor.take(RUN_ID)

    return taken


def test_a_claim_that_was_not_answered_is_repeated_with_its_token_and_each_message_has_its_own(
    take: Callable[[Claims], None],
) -> None:
    agent = Claims(away=2, look=lambda _token: None)
    take(agent)
    assert len(agent.tokens) == 3
    assert len(set(agent.tokens)) == 1
    take(agent)
    assert len(set(agent.tokens)) == 2


def test_the_ticket_is_held_before_the_claim_is_made_and_free_when_the_message_is_done(
    take: Callable[[Claims], None], tmp_path: Path
) -> None:
    premises = Premises(tmp_path)

    def sign(token: str) -> WorkerSign:
        return premises.signs([run_facts("worker-1", token)])[RUN_ID, 1]

    seen: list[WorkerSign] = []
    agent = Claims(away=0, look=lambda token: seen.append(sign(token)))
    with held_card(tmp_path / "workers", "worker-1", "node", None):
        take(agent)
        assert seen == [WorkerSign.ALIVE]
        assert sign(agent.tokens[0]) is WorkerSign.DEAD
