"""Keeps a session with the coordinator, and knows how it stands.

What ends a session decides when the next one is tried, by table and not by
text. Nothing but an operator's act makes the node give up: a node that was
revoked asks seldom, but asks. Nothing that the coordinator sends ends the
agent either: its runs, its workers and its operator need it as before.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import grpc
import structlog

from hansa.contract.errors import HansaError, Reason
from hansa.runtime.backoff import delays
from hansa.runtime.channels import CLIENT_OPTIONS
from hansa.runtime.clock import Clock
from hansa.runtime.supervisor import until_first_ends
from hansa.sdk.errors import remote_error
from hansa.v1 import node_service_pb2_grpc
from node_agent.audit.entries import session_refused
from node_agent.audit.log import append
from node_agent.config import StateFolder
from node_agent.keys.credential import load_credential, load_server_ca
from node_agent.link.renewal import Renewal, RenewedError
from node_agent.link.session import Session, SessionParts
from node_agent.link.trust_source import WireTrustSource
from node_agent.link.uploads import SummaryUpload
from node_agent.spool.uploader import Uploader

_log = structlog.get_logger(__name__)


class LinkState(enum.StrEnum):
    """How the node stands with the coordinator, as it sees itself."""

    OFFLINE = "OFFLINE"
    ONLINE = "ONLINE"
    WAITING = "WAITING"  # an operator has to confirm the node
    REFUSED = "REFUSED"  # suspended, quarantined, revoked, or certificate refused


@dataclass(frozen=True, slots=True)
class _Reaction:
    state: LinkState
    most_seconds: float


# A session that stood this long was a good one: the next trouble is a new one.
_SETTLED_SECONDS: Final = 10.0
_UNREACHABLE: Final = _Reaction(LinkState.OFFLINE, 5.0)
# Asking again at once would only bring the same again; an operator has to look.
_MISFIT: Final = _Reaction(LinkState.OFFLINE, 30.0)
# Too many nodes at once, or too much to do: to ask at once again would be more of the same.
_CROWDED: Final = _Reaction(LinkState.OFFLINE, 15.0)
_RENEWED: Final = _Reaction(LinkState.ONLINE, 5.0)
_REACTIONS: Final[Mapping[Reason, _Reaction]] = {
    Reason.NODE_NOT_CONFIRMED: _Reaction(LinkState.WAITING, 1.0),
    Reason.NODE_SUSPENDED: _Reaction(LinkState.REFUSED, 10.0),
    Reason.NODE_QUARANTINED: _Reaction(LinkState.REFUSED, 30.0),
    Reason.NODE_REVOKED: _Reaction(LinkState.REFUSED, 60.0),
    Reason.CERTIFICATE_REFUSED: _Reaction(LinkState.REFUSED, 30.0),
    # It has forgotten what it sent us; none of its commands is applied until its operator has restored it.
    Reason.COORDINATOR_BEHIND: _Reaction(LinkState.REFUSED, 30.0),
    Reason.PROTOCOL_VIOLATION: _MISFIT,
    Reason.VERSION_UNSUPPORTED: _MISFIT,
    # What it says of the logs is no checkpoint, or no proof.
    Reason.NOTE_INVALID: _MISFIT,
    Reason.INTERNAL: _MISFIT,
    Reason.RATE_LIMITED: _CROWDED,
    Reason.OVERLOADED: _CROWDED,
}


@dataclass(slots=True)
class Standing:
    """How the link stands, for ``hansa-node status``."""

    state: LinkState = LinkState.OFFLINE
    reason: str = ""
    since: datetime | None = None

    def become(self, state: LinkState, reason: str, now: datetime) -> None:
        """Take over a state; ``since`` moves only when it is another one."""
        if state is not self.state or self.since is None:
            self.since = now
            _log.info("link_state", state=state.value, reason=reason)
        self.state, self.reason = state, reason


class Pace:
    """How long to wait before the next session: longer with each that came to nothing."""

    def __init__(self, draw: Callable[[], float]) -> None:
        """Take a source of uniform numbers in [0, 1)."""
        self._draw = draw
        self._most = 0.0
        self._waits: Iterator[float] = iter(())

    def wait(self, most_seconds: float, lasted_seconds: float) -> float:
        """Return the seconds to wait.

        Args:
            most_seconds: the longest wait that the cause of the end calls for.
            lasted_seconds: how long the last try lasted; a short one counts as
                failed, also where it was attached: what ended it may come again.
        """
        if most_seconds != self._most or lasted_seconds >= _SETTLED_SECONDS:
            self._most, self._waits = most_seconds, delays(self._draw, most=most_seconds)
        return next(self._waits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The agent's connection: sessions one after the other, for ever."""

    endpoint: str
    state: StateFolder
    parts: SessionParts
    uploader: Uploader
    renewal: Renewal
    clock: Clock
    draw: Callable[[], float]
    standing: Standing = field(default_factory=Standing)

    async def run(self) -> None:
        """Attach, and attach again whenever a session has ended."""
        pace = Pace(self.draw)
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            reaction = await self._one_session()
            await asyncio.sleep(pace.wait(reaction.most_seconds, loop.time() - begun))

    async def _one_session(self) -> _Reaction:
        try:
            async with self._channel() as channel:
                self.parts.trust.source = WireTrustSource(channel, asyncio.get_running_loop())
                await self._converse(node_service_pb2_grpc.NodeServiceStub(channel), asyncio.Event())
        except grpc.aio.AioRpcError as error:
            return self._react(self._judged(remote_error(error)))
        except TimeoutError:
            return self._react(HansaError(Reason.COORDINATOR_UNREACHABLE, log="attach timed out"))
        except RenewedError:
            return _RENEWED
        except HansaError as error:
            await self._note(error.reason)
            return self._react(error)
        except Exception:
            # Frames nobody thought of, or a store that cannot write just now.
            _log.exception("session_crashed")
            await self._note(Reason.INTERNAL)
            return self._react(HansaError(Reason.INTERNAL, log="see session_crashed"))
        return self._react(HansaError(Reason.COORDINATOR_UNREACHABLE, log="the session ended"))

    def _judged(self, error: HansaError) -> HansaError:
        """Return why there is no session: with an expired certificate, TLS ends before anybody says so."""
        ended = load_credential(self.state).certificate.not_valid_after_utc
        if error.reason is not Reason.COORDINATOR_UNREACHABLE or self.clock() < ended:
            return error
        return HansaError(Reason.CERTIFICATE_REFUSED, "The certificate has expired.", log=str(error))

    def _channel(self) -> grpc.aio.Channel:
        own = load_credential(self.state)
        credentials = grpc.ssl_channel_credentials(load_server_ca(self.state), own.key_pem, own.certificate_pem)
        return grpc.aio.secure_channel(self.endpoint, credentials, options=list(CLIENT_OPTIONS))

    async def _converse(self, stub: node_service_pb2_grpc.NodeServiceAsyncStub, attached: asyncio.Event) -> None:
        session = Session(self.parts, stub)
        await until_first_ends(session.run(attached), self._when_attached(stub, attached))

    async def _when_attached(self, stub: node_service_pb2_grpc.NodeServiceAsyncStub, attached: asyncio.Event) -> None:
        await attached.wait()
        self.standing.become(LinkState.ONLINE, "", self.clock())
        await until_first_ends(
            self.renewal.run(stub, self.parts.wishes.renew),
            self.uploader.run(SummaryUpload(stub).send),
            self.parts.trust.run(),
        )

    async def _note(self, reason: Reason) -> None:
        """Write into the audit log that what the coordinator said did not fit; the pace of sessions bounds how often."""
        if _REACTIONS.get(reason) is not _MISFIT:
            return
        now = self.clock()
        try:
            await self.parts.database.run(lambda session: append(session, session_refused(reason), now))
        except Exception:
            # The session has ended anyway; a store that cannot write must not end the agent.
            _log.exception("session_end_not_noted")

    def _react(self, error: HansaError) -> _Reaction:
        reaction = _REACTIONS.get(error.reason, _UNREACHABLE)
        self.standing.become(reaction.state, error.reason.value, self.clock())
        tell = _log.error if reaction is _MISFIT else _log.info
        tell("session_ended", reason=error.reason.value, detail=str(error))
        return reaction
