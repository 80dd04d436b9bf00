"""One channel to the coordinator: server TLS, and a fresh token for each call."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.contract.errors import HansaError, Reason
from hansa.runtime.backoff import delays
from hansa.runtime.channels import PEOPLE_CLIENT_OPTIONS
from hansa.runtime.clock import Clock, utc_now
from hansa.sdk.errors import RemoteError, remote_error, unreachable
from hansa.sdk.keys import load_private_key
from hansa.sdk.patience import OnWait, Patience, no_word
from hansa.sdk.profile import Profile
from hansa.sdk.tokens import mint

Metadata = Sequence[tuple[str, str]]
T = TypeVar("T")
Request = TypeVar("Request")
Response = TypeVar("Response")

CONNECT_SECONDS: Final = 10.0
CALL_SECONDS: Final = 30.0
UPLOAD_SECONDS: Final = 300.0
_CA_BYTES: Final = 256 << 10


class Connection:
    """A channel that is ready, and who speaks over it."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        profile: Profile,
        key: Ed25519PrivateKey,
        *,
        clock: Clock,
        on_wait: OnWait = no_word,
    ) -> None:
        self.channel = channel
        self.profile = profile
        self.key = key
        self.clock = clock
        self._on_wait = on_wait

    def patience(self) -> Patience:
        """Return a new call's willingness to come again."""
        return Patience(asyncio.get_running_loop().time, draw, self._on_wait)

    def metadata(self) -> Metadata:
        """Return the metadata of one call: a new token each time."""
        token = mint(
            self.profile.person, self.profile.federation, self.key, now=self.clock(), jti=secrets.token_hex(16)
        )
        return (("authorization", f"Bearer {token}"),)

    def request_id(self) -> str:
        """Return a new id for a call that changes something."""
        return str(uuid.uuid4())

    async def call(self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, /) -> Response:
        """Return the answer to ``request``.

        A call that got lost, or was refused with the request to come again, is
        made again with the same request, which the coordinator answers like
        the first: every mutating one has a request id or is idempotent by its
        bytes.

        Raises:
            RemoteError: the coordinator refused, also when asked again; or did
                not answer within ``CALL_SECONDS``.
        """
        return await self.patiently(lambda seconds: method(request, metadata=self.metadata(), timeout=seconds))

    async def patiently(self, attempt: Callable[[float], Awaitable[T]]) -> T:
        """Return what ``attempt`` returns, given the seconds that it may take.

        Args:
            attempt: makes the call, once; it may be called many times.

        Raises:
            RemoteError: as ``call``.
        """
        patience = self.patience()
        while True:
            try:
                return await self._reach(attempt)
            except RemoteError as refusal:
                await patience.wait(refusal)

    async def _reach(self, attempt: Callable[[float], Awaitable[T]]) -> T:
        """Return the coordinator's answer, or raise its refusal; what gets lost is sent again."""
        loop = asyncio.get_running_loop()
        until = loop.time() + CALL_SECONDS
        for pause in delays(draw):
            try:
                return await attempt(until - loop.time())
            except grpc.aio.AioRpcError as error:
                refusal = remote_error(error)
                if refusal.reason is not Reason.COORDINATOR_UNREACHABLE:
                    raise refusal from error
                if loop.time() + pause >= until:
                    raise unreachable(self.profile.endpoint, str(refusal)) from error
            await asyncio.sleep(pause)
        raise unreachable(self.profile.endpoint)

    async def upload(
        self, method: grpc.aio.StreamUnaryMultiCallable[Request, Response], requests: Iterable[Request], /
    ) -> Response:
        """Return the answer to a stream of ``requests``, which is sent once.

        Raises:
            RemoteError: the coordinator refused, or did not answer within
                ``UPLOAD_SECONDS``.
        """
        try:
            return await method(iter(requests), metadata=self.metadata(), timeout=UPLOAD_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise remote_error(error) from error


draw: Final[Callable[[], float]] = secrets.SystemRandom().random


@asynccontextmanager
async def open_connection(
    profile: Profile, *, clock: Clock = utc_now, connect_seconds: float = CONNECT_SECONDS, on_wait: OnWait = no_word
) -> AsyncIterator[Connection]:
    """Yield a connection that is ready; close it afterwards. ``on_wait`` is told when a call has to come again.

    Raises:
        HansaError: ``KEY_INVALID`` or ``CONFIG_INVALID`` before any contact.
        RemoteError: ``COORDINATOR_UNREACHABLE``; nobody listens, the
            certificate is not of the profile's CA, or the time is up.
    """
    key = load_private_key(profile.key_file)
    credentials = grpc.ssl_channel_credentials(root_certificates=read_ca(profile.ca_file))
    channel = grpc.aio.secure_channel(profile.endpoint, credentials, options=PEOPLE_CLIENT_OPTIONS)
    try:
        await _until_ready(channel, profile.endpoint, connect_seconds)
        yield Connection(channel, profile, key, clock=clock, on_wait=on_wait)
    finally:
        await channel.close()


async def _until_ready(channel: grpc.aio.Channel, endpoint: str, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            state = channel.get_state(try_to_connect=True)
            while state is not grpc.ChannelConnectivity.READY:
                # All addresses were tried once: a person should not wait longer to be told.
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    raise unreachable(endpoint)
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError as error:
        raise unreachable(endpoint, "timeout") from error


def read_ca(path: Path) -> bytes:
    """Return the certificates (PEM) that a profile trusts to name the coordinator.

    Raises:
        HansaError: ``CONFIG_INVALID``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_CA_BYTES)
        x509.load_pem_x509_certificates(data)
    except OSError as error:
        raise HansaError(
            Reason.CONFIG_INVALID, f"The CA file {path} cannot be read: {error.strerror}.", field="ca_file"
        ) from error
    except ValueError as error:
        raise HansaError(
            Reason.CONFIG_INVALID, f"The CA file {path} holds no certificate in PEM form.", field="ca_file"
        ) from error
    return data
