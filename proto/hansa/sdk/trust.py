"""The trust repository as a person's client knows it: fetched from the coordinator, believed for its signatures alone."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from hansa.contract.errors import HansaError, Reason
from hansa.sdk.connection import Connection
from hansa.trust.client import TrustClient
from hansa.trust.view import TrustView
from hansa.v1 import trust_service_pb2 as wire
from hansa.v1 import trust_service_pb2_grpc

_ROOT_BYTES: Final = 512_000
_FOLDER: Final = ".trust"

Value = TypeVar("Value")
_Stream = grpc.aio.UnaryStreamCall[Any, Any]


def read_trust_root(path: Path) -> bytes:
    """Return the root metadata that a profile pins.

    Raises:
        HansaError: ``CONFIG_INVALID``; it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(_ROOT_BYTES)
    except OSError as error:
        raise HansaError(
            Reason.CONFIG_INVALID, f"The trust root {path} cannot be read: {error.strerror}.", field="trust_root"
        ) from error


def trust_folder(trust_root: Path, root: bytes) -> Path:
    """Return where a client keeps what it verified from ``root``: in ``.trust`` beside the root's file."""
    return trust_root.parent / _FOLDER / hashlib.sha256(root).hexdigest()[:16]


class TrustReader:
    """Verified views of the repository. Raises ``RemoteError`` and ``HansaError`` ``TRUST_…``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def view(self) -> TrustView:
        """Return what is in force now, verified from the profile's root.

        Raises:
            HansaError: ``CONFIG_INVALID``; the profile's root cannot be read,
                or the repository is of another federation.
        """
        client = self._client()
        view = await asyncio.to_thread(client.refresh, self._connection.clock())
        profile = self._connection.profile
        if view.directory.federation != profile.federation:
            raise HansaError(
                Reason.CONFIG_INVALID,
                f"The trust root is of {view.directory.federation}, the profile of {profile.federation}.",
                field="trust_root",
            )
        return view

    async def file_of(self, view: TrustView, sha256: str) -> bytes:
        """Return a file of an analysis by its SHA-256 (hex), from the folder or from the coordinator."""
        return await asyncio.to_thread(self._client().file_of, view, sha256)

    def _client(self) -> TrustClient:
        path = self._connection.profile.trust_root
        root = read_trust_root(path)
        source = ServiceSource(self._connection, asyncio.get_running_loop())
        return TrustClient(trust_folder(path, root), root, source, whole=False)


class ServiceSource:
    """``TrustService`` as a source, for threads beside the event loop that has the connection."""

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._stub = trust_service_pb2_grpc.TrustServiceStub(connection.channel)

    def metadata(self, role: str, version: int, most_bytes: int) -> bytes:
        """Return a role's metadata."""
        request = wire.GetMetadataRequest(role=role, version=version)
        return self._wait(self._read(lambda extra: self._stub.GetMetadata(request, **extra), most_bytes))

    def target(self, path: str, sha256: str, most_bytes: int) -> bytes:
        """Return the target of this digest."""
        request = wire.GetTargetRequest(path=path, sha256=bytes.fromhex(sha256))
        return self._wait(self._read(lambda extra: self._stub.GetTarget(request, **extra), most_bytes))

    def _wait(self, work: Coroutine[Any, Any, Value]) -> Value:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _read(self, call: Callable[[dict[str, Any]], _Stream], most_bytes: int) -> bytes:
        """Return a whole stream; one that got lost is asked for again, as every call."""
        metadata = self._connection.metadata
        return await self._connection.patiently(
            lambda seconds: _whole(call({"metadata": metadata(), "timeout": seconds}), most_bytes)
        )


async def _whole(stream: _Stream, most_bytes: int) -> bytes:
    data = bytearray()
    try:
        async for message in stream:
            data += message.chunk
            if len(data) > most_bytes:
                raise HansaError(
                    Reason.TRUST_INVALID, "The coordinator sends more than was signed.", log=f"{most_bytes}"
                )
    finally:
        stream.cancel()
    return bytes(data)
