"""Between a node and the coordinator: a proxy that disturbs bytes, and one that disturbs frames.

The first sees TLS only; whatever it changes has to show as a broken
connection. The second ends TLS on both sides, with the coordinator's key
towards the node and the node's key towards the coordinator, which only a test
has together: it repeats, swaps and holds back whole frames.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc

from coordinator.ca.files import load_keys
from coordinator.config import load_config
from hansa.runtime.channels import CLIENT_OPTIONS, SERVER_OPTIONS
from node_agent.config import StateFolder
from node_agent.keys.credential import load_credential

_CHUNK: Final = 64 << 10
_GRACE_SECONDS: Final = 0.2


@dataclass(slots=True)
class ByteProxy:
    """Relays TCP connections. ``delay`` holds each chunk; ``corrupt`` and ``cut`` are done to the next one."""

    upstream: tuple[str, int]
    delay: float = 0.0
    corrupt: int = 0
    cut: int = 0
    _server: asyncio.Server | None = None
    _streams: set[asyncio.StreamWriter] = field(default_factory=set)

    @classmethod
    async def listen(cls, host: str, upstream: tuple[str, int]) -> ByteProxy:
        """Begin to relay from a free port of ``host``."""
        proxy = cls(upstream)
        proxy._server = await asyncio.start_server(proxy._serve, host, 0)
        return proxy

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Cut everything and listen no more."""
        assert self._server is not None
        self._server.close()
        for stream in list(self._streams):
            stream.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self.upstream)
        except OSError:
            writer.transport.abort()
            return
        self._streams |= {writer, upstream_writer}
        ways = [
            asyncio.create_task(self._pump(reader, upstream_writer)),
            asyncio.create_task(self._pump(upstream_reader, writer)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for stream in (writer, upstream_writer):
            stream.transport.abort()
            self._streams.discard(stream)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if self.corrupt:
                    self.corrupt -= 1
                    middle = len(chunk) // 2
                    chunk = chunk[:middle] + bytes([chunk[middle] ^ 0x55]) + chunk[middle + 1 :]
                if self.cut:
                    self.cut -= 1
                    writer.write(chunk[: len(chunk) // 2])
                    await writer.drain()
                    return
                writer.write(chunk)
                await writer.drain()


@dataclass(slots=True)
class FrameProxy:
    """Relays every method as a stream of frames; disturbs those of ``Connect``, either way.

    ``repeat`` and ``swap`` are done to the next frames, that many; ``delay``
    holds each. ``readable`` keeps what passed towards the coordinator.
    """

    upstream: str
    coordinator_state: Path
    node_state: StateFolder
    port: int = 0
    repeat: int = 0
    swap: int = 0
    delay: float = 0.0
    readable: list[bytes] = field(default_factory=list)
    _server: grpc.aio.Server | None = None

    @classmethod
    async def listen(
        cls, host: str, upstream: tuple[str, int], coordinator_state: Path, node_state: StateFolder
    ) -> FrameProxy:
        """Begin to relay from a free port of ``host``."""
        proxy = cls(f"{upstream[0]}:{upstream[1]}", coordinator_state, node_state)
        names = load_config(coordinator_state).server_names
        keys = load_keys(coordinator_state / "ca", names=names, now=datetime.now(UTC))
        credentials = grpc.ssl_server_credentials(
            [(keys.server_key_pem, keys.server_chain_pem)],
            root_certificates=keys.node_ca.certificate_pem,
            require_client_auth=True,
        )
        proxy._server = grpc.aio.server(options=list(SERVER_OPTIONS))
        proxy._server.add_generic_rpc_handlers([_Everything(proxy)])
        proxy.port = proxy._server.add_secure_port(f"{host}:0", credentials)
        await proxy._server.start()
        return proxy

    async def close(self) -> None:
        """Listen no more."""
        assert self._server is not None
        await self._server.stop(_GRACE_SECONDS)

    def _channel(self) -> grpc.aio.Channel:
        # Read each time: the node's certificate may have been renewed.
        credential = load_credential(self.node_state)
        keys = load_keys(self.coordinator_state / "ca", names=(), now=datetime.now(UTC))
        credentials = grpc.ssl_channel_credentials(
            root_certificates=keys.server_ca.certificate_pem,
            private_key=credential.key_pem,
            certificate_chain=credential.certificate_pem,
        )
        options = [*CLIENT_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(self.upstream, credentials, options=options)

    async def relay(
        self, method: str, frames: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        """Yield what the coordinator answers to ``frames``."""
        stream = method.endswith("/Connect")
        async with self._channel() as channel:
            forward: Any = channel.stream_stream(method)
            call = forward(self._towards(frames, stream=stream))
            answers = self._disturbed(call) if stream else call
            try:
                async for answer in answers:
                    yield answer
            except grpc.aio.AioRpcError as error:
                context.set_trailing_metadata(_sendable(error))
                await context.abort(error.code(), error.details() or "")
            finally:
                call.cancel()

    async def _towards(self, frames: AsyncIterator[bytes], *, stream: bool) -> AsyncIterator[bytes]:
        async for frame in self._disturbed(frames) if stream else frames:
            self.readable.append(frame)
            yield frame

    async def _disturbed(self, frames: Any) -> AsyncIterator[bytes]:
        held: bytes | None = None
        async for frame in frames:
            if self.delay:
                await asyncio.sleep(self.delay)
            if held is None and self.swap:
                self.swap -= 1
                held = frame
                continue
            yield frame
            if self.repeat:
                self.repeat -= 1
                yield frame
            if held is not None:
                yield held
                held = None


class _Everything(grpc.GenericRpcHandler):
    """On the wire a unary call is a stream of one: one way of relaying serves all methods."""

    def __init__(self, proxy: FrameProxy) -> None:
        self._proxy = proxy

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Relay whatever is called."""
        method = handler_call_details.method

        async def relay(frames: Any, context: Any) -> AsyncIterator[bytes]:
            async for answer in self._proxy.relay(method, frames, context):
                yield answer

        return grpc.stream_stream_rpc_method_handler(relay)


def _sendable(error: grpc.aio.AioRpcError) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((key, value) for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin")
