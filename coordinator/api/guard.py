"""Admits a call: who calls, may they, how often. Everything else stands behind it."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

import grpc
from sqlalchemy.orm import Session

from coordinator.api.caller import Caller, Kind
from coordinator.api.method_policy import METHOD_POLICY, MethodPolicy
from coordinator.api.rates import RateLimiter
from coordinator.api.tokens import claimed_name, verify_token
from coordinator.domain.authorisation import Bearer, Outsider, Ownership, is_allowed
from coordinator.services.enrolment import identify_node
from coordinator.store.database import Database
from coordinator.store.persons import Person, PersonRepository
from hansa.contract.errors import HansaError, Reason
from hansa.contract.raw_keys import signing_key
from hansa.runtime.clock import Clock

Context = grpc.aio.ServicerContext[Any, Any]
Authenticator = Callable[[Context], Awaitable[Caller]]

# Calls of one caller to all methods together.
ALL_PER_MINUTE: Final = 6000

_BEARER: Final = "Bearer "
_ANY_METHOD: Final = "*"
# A household or an attacker with IPv6 has this many bits of addresses for free.
_IPV6_PREFIX: Final = 64


class Guard:
    """What the interceptor asks before any method runs."""

    def __init__(self, authenticators: Mapping[Bearer, Authenticator], rates: RateLimiter) -> None:
        """Take one authenticator for each role that a listener serves.

        A method that two listeners serve takes roles of both.
        """
        self._authenticators = authenticators
        self._rates = rates

    async def admit(self, method: str, context: Context) -> tuple[Caller, MethodPolicy]:
        """Return who calls, and the method's rules.

        Raises:
            HansaError: ``UNAUTHENTICATED``, ``CERTIFICATE_REFUSED`` or what
                the node's state says; ``PERMISSION_DENIED``, the method takes
                other roles or has no row in the policy.
        """
        policy = METHOD_POLICY.get(method)
        if policy is None:
            raise HansaError(Reason.PERMISSION_DENIED, log="method without a policy")
        here = (self._authenticators[role] for role in policy.rule.roles if role in self._authenticators)
        authenticate = next(here, None)
        if authenticate is None:
            raise HansaError(Reason.PERMISSION_DENIED, log="method of another listener")
        caller = await authenticate(context)
        # Whose the thing is that the call is about, the method finds out.
        if not is_allowed(caller.roles, policy.rule, Ownership.OPEN):
            raise HansaError(Reason.PERMISSION_DENIED)
        return caller, policy

    def count(self, caller: Caller, method: str, policy: MethodPolicy) -> None:
        """Count an admitted call.

        Raises:
            HansaError: ``RATE_LIMITED``; the caller makes too many.
        """
        self._rates.check(caller.subject, method, per_minute=policy.per_minute)
        self._rates.check(caller.subject, _ANY_METHOD, per_minute=ALL_PER_MINUTE)


def people_authenticator(database: Database, federation: str, clock: Clock) -> Authenticator:
    """Return what recognises people by their tokens, as the directory in force has them."""

    async def authenticate(context: Context) -> Caller:
        token = _bearer(context)
        name = claimed_name(token)
        person: Person | None = await database.run(lambda session: PersonRepository(session).get(name))
        if person is None:
            raise HansaError(Reason.UNAUTHENTICATED, log="no such person")
        key = signing_key(person.signing_key)
        verify_token(token, name=name, key=key, federation=federation, now=clock())
        return Caller(Kind.PERSON, name, frozenset(person.roles))

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
            return Caller(Kind.NODE, credential.node, frozenset({Outsider.NODE}), credential.not_after)

        return await database.run(work)

    return authenticate


async def guest(context: Context) -> Caller:
    """Recognise somebody by nothing but the network address."""
    return Caller(Kind.GUEST, address_of(context.peer()), frozenset({Outsider.GUEST}))


def claim_of(context: Context) -> str:
    """Return whom a caller claims to be, which proves nothing yet; empty where it cannot be true."""
    try:
        return claimed_name(_bearer(context))
    except HansaError:
        shown = list(context.auth_context().get("x509_pem_cert", ()))
        return hashlib.sha256(shown[0]).hexdigest() if shown else ""


def address_of(peer: str) -> str:
    """Return whom gRPC's name of a peer stands for: the address, of IPv6 the network, without the port."""
    kind, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0]
    if kind != "ipv6":
        return f"{kind}:{host}"
    try:
        network = ipaddress.ip_network((host.strip("[]").partition("%")[0], _IPV6_PREFIX), strict=False)
    except ValueError:
        return f"{kind}:{host}"
    return f"{kind}:{network.network_address}"


def _bearer(context: Context) -> str:
    values = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str) or not values[0].startswith(_BEARER):
        raise HansaError(Reason.UNAUTHENTICATED, "The call carries no token.", log="no bearer token")
    return values[0].removeprefix(_BEARER)
