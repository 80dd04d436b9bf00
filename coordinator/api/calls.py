"""The transactions of calls: reads, and changes that happen once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeVar
from uuid import uuid4

from google.protobuf.message import Message
from sqlalchemy.orm import Session

from coordinator.api.caller import current_caller
from coordinator.services.nodes import Act
from coordinator.services.proposals import Call, carry_out, pending_second
from coordinator.store.database import Database
from coordinator.store.proposals import Proposal
from coordinator.store.requests import Request, answer_once, first_answer
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.clock import Clock

T = TypeVar("T")
M = TypeVar("M", bound=Message)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Calls:
    """Runs the work of a call in one transaction."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Take the store and the clock that acts are dated with."""
        self._database = database
        self._clock = clock

    async def read(self, work: Callable[[Session], T]) -> T:
        """Return what ``work`` finds."""
        return await self._database.run(work)

    async def change(self, request: Message, work: Callable[[Session, Act], M], answer: type[M]) -> M:
        """Return what ``work`` answers, or what it answered to the same call before.

        Args:
            request: the call's message, which has a ``request_id``.
            work: makes the change; its answer is stored and holds no secret.
            answer: the type of the answer.

        Raises:
            HansaError: ``MALFORMED``, there is no request id;
                ``IDEMPOTENCY_MISMATCH``; whatever ``work`` refuses.
        """
        act, call = self._begin(request)

        def once(session: Session) -> bytes:
            return answer_once(session, call, act.now, lambda: work(session, act).SerializeToString())

        return answer.FromString(await self._database.run(once))

    async def change_by_two(
        self, request: Message, subject: str, work: Callable[[Session, Act], M], answer: type[M]
    ) -> M:
        """Return what ``work`` answers once a second operator makes the same call; else it is proposed.

        Args:
            request: the call's message; all but its ``request_id`` must be the same the second time.
            subject: what the call is about, for people.
            work: as in ``change``.
            answer: the type of the answer.

        Raises:
            HansaError: ``PENDING_SECOND``, and what ``change`` raises.
        """
        act, made = self._begin(request)
        arguments = type(request).FromString(made.body)
        arguments.ClearField("request_id")
        call = Call(
            method=request.DESCRIPTOR.name.removesuffix("Request"),
            subject=subject,
            arguments=arguments.SerializeToString(deterministic=True),
            proposal_id=str(uuid4()),
        )

        def once(session: Session) -> bytes | Proposal:
            first = first_answer(session, made)
            if first is not None:
                return first
            done = carry_out(session, call, act, lambda: work(session, act).SerializeToString())
            # What is only proposed is no answer: the same request may yet be carried out.
            return done if isinstance(done, Proposal) else answer_once(session, made, act.now, lambda: done)

        done = await self._database.run(once)
        if isinstance(done, Proposal):
            raise pending_second(done)
        return answer.FromString(done)

    def _begin(self, request: Message) -> tuple[Act, Request]:
        caller = current_caller()
        call = Request(
            caller=caller.subject,
            request_id=request_id_of(request),
            method=request.DESCRIPTOR.full_name,
            body=request.SerializeToString(deterministic=True),
        )
        return Act(caller.name, self._clock()), call


def request_id_of(request: Message) -> str:
    """Return the request's id.

    Raises:
        HansaError: ``MALFORMED``; it is empty or not 1 to 64 plain characters.
    """
    text: str = getattr(request, "request_id")  # noqa: B009 - each mutating request has the field, Message has not
    if not _REQUEST_ID.fullmatch(text):
        raise HansaError(
            Reason.MALFORMED, "A request id is 1 to 64 letters, digits, '.', '_' and '-'.", field="request_id"
        )
    return text
