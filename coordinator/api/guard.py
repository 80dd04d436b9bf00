"""Admits a call: who calls, may they, how often. Everything else stands behind it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
from sqlalchemy.orm import Session

from coordinator.api.caller import Caller, Role
from coordinator.api.method_policy import METHOD_POLICY, MethodPolicy
from coordinator.api.rates import RateLimiter
from coordinator.api.tokens import claimed_name, verify_token
from coordinator.services.enrolment import identify_node
from coordinator.services.people import load_person_key
from coordinator.store.database import Database
from coordinator.store.persons import Person, PersonRepository
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.clock import Clock

Context = grpc.aio.ServicerContext[Any, Any]
Authenticator = Callable[[Context], Awaitable[Caller]]

_BEARER: Final = "Bearer "


class Guard:
    """What the interceptor asks before any method runs."""

    def __init__(self, authenticators: Mapping[Role, Authenticator], rates: RateLimiter) -> None:
        """Take one authenticator for each role that a listener serves."""
        self._authenticators = authenticators
        self._rates = rates

    async def admit(self, method: str, context: Context) -> tuple[Caller, MethodPolicy]:
        """Return who calls, and the method's rules.

        Raises:
            HansaError: ``UNAUTHENTICATED``, ``CERTIFICATE_REFUSED`` or what
                the node's state says; ``PERMISSION_DENIED``, the method takes
                other roles or has no row in the policy; ``RATE_LIMITED``.
        """
        policy = METHOD_POLICY.get(method)
        if policy is None:
            raise HansaError(Reason.PERMISSION_DENIED, log="method without a policy")
        authenticate = next((self._authenticators[role] for role in policy.roles if role in self._authenticators), None)
        if authenticate is None:
            raise HansaError(Reason.PERMISSION_DENIED, log="method of another listener")
        caller = await authenticate(context)
        if caller.role not in policy.roles:
            raise HansaError(Reason.PERMISSION_DENIED)
        self._rates.check(caller.subject, method, per_minute=policy.per_minute)
        return caller, policy


def people_authenticator(database: Database, federation: str, clock: Clock) -> Authenticator:
    """Return what recognises people by their tokens."""

    async def authenticate(context: Context) -> Caller:
        token = _bearer(context)
        name = claimed_name(token)
        person: Person | None = await database.run(lambda session: PersonRepository(session).get(name))
        if person is None:
            raise HansaError(Reason.UNAUTHENTICATED, log="no such person")
        key = load_person_key(person.public_key_pem)
        verify_token(token, name=name, key=key, federation=federation, now=clock())
        return Caller(Role(person.role), name)

    return authenticate


def node_authenticator(database: Database, federation: str, clock: Clock) -> Authenticator:
    """Return what recognises nodes by their certificates, anew on each call."""

    async def authenticate(context: Context) -> Caller:
        shown = list(context.auth_context().get("x509_pem_cert", ()))
        if len(shown) != 1:
            raise HansaError(Reason.CERTIFICATE_REFUSED, log="no certificate")
        now = clock()

        def work(session: Session) -> Caller:
            credential = identify_node(session, shown[0], federation=federation, now=now)
            return Caller(Role.NODE, credential.node, credential.not_after)

        return await database.run(work)

    return authenticate


async def guest(context: Context) -> Caller:
    """Recognise somebody by nothing but the network address."""
    kind, _, rest = context.peer().partition(":")
    return Caller(Role.GUEST, f"{kind}:{rest.rpartition(':')[0]}")


def _bearer(context: Context) -> str:
    values = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str) or not values[0].startswith(_BEARER):
        raise HansaError(Reason.UNAUTHENTICATED, "The call carries no token.", log="no bearer token")
    return values[0].removeprefix(_BEARER)
