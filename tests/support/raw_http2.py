"""HTTP/2 by hand, for what no gRPC client would send: pings in a row, prepared gzip, large headers."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
ENHANCE_YOUR_CALM = 11
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_FRAME_BYTES = 16_000
_WINDOW = 65_535
_INITIAL_WINDOW_SIZE = 4


@dataclass(frozen=True)
class Frame:
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def error(self) -> int:
        """The error code of a GOAWAY or RST_STREAM."""
        start = 4 if self.kind == GOAWAY else 0
        return int.from_bytes(self.payload[start : start + 4])


class RawConnection:
    """A connection whose every byte the test writes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # What we may still send: of the connection (stream 0), and of the one stream.
        self._room = {0: _WINDOW, 1: _WINDOW}
        self._initial = _WINDOW

    async def send(self, kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> None:
        head = struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream)
        self._writer.write(head + payload)
        await self._writer.drain()

    async def read(self) -> Frame | None:
        """Return the next frame; None at the end of the connection."""
        try:
            head = await self._reader.readexactly(9)
            length = int.from_bytes(head[:3])
            return Frame(head[3], head[4], int.from_bytes(head[5:]), await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def ping(self) -> None:
        await self.send(PING, bytes(8))

    async def request(self, path: str, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """Send one unary gRPC call on stream 1; ``body`` is a whole gRPC message with its prefix."""
        fields = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *headers,
        ]
        block = b"".join(_literal(name, value) for name, value in fields)
        pieces = [block[i : i + _FRAME_BYTES] for i in range(0, len(block), _FRAME_BYTES)]
        for number, piece in enumerate(pieces):
            last = _END_HEADERS if number == len(pieces) - 1 else 0
            await self.send(HEADERS if number == 0 else CONTINUATION, piece, flags=last, stream=1)
        chunks = [body[i : i + _FRAME_BYTES] for i in range(0, len(body), _FRAME_BYTES)] or [b""]
        for number, chunk in enumerate(chunks):
            while min(self._room.values()) < len(chunk):
                if await self.until(WINDOW_UPDATE, SETTINGS) is None:
                    return
            self._room = {stream: room - len(chunk) for stream, room in self._room.items()}
            await self.send(DATA, chunk, flags=_END_STREAM if number == len(chunks) - 1 else 0, stream=1)

    async def until(self, *kinds: int) -> Frame | None:
        """Return the next frame of one of ``kinds``; None if the connection ends first."""
        while (frame := await self.read()) is not None:
            await self._obey(frame)
            if frame.kind in kinds:
                break
        return frame

    async def _obey(self, frame: Frame) -> None:
        if frame.kind == WINDOW_UPDATE:
            self._room[frame.stream] += int.from_bytes(frame.payload)
        elif frame.kind in (SETTINGS, PING) and not frame.flags & _ACK:
            # A peer that does not answer pings is cut off.
            await self.send(frame.kind, frame.payload if frame.kind == PING else b"", flags=_ACK)
            for name, value in struct.iter_unpack(">HI", frame.payload) if frame.kind == SETTINGS else ():
                if name == _INITIAL_WINDOW_SIZE:
                    self._room[1] += value - self._initial
                    self._initial = value


@asynccontextmanager
async def raw_connection(address: str, context: ssl.SSLContext) -> AsyncIterator[RawConnection]:
    """Open TLS with ALPN h2 to ``address`` and send the preface."""
    host, _, port = address.rpartition(":")
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")
    writer.write(_PREFACE)
    connection = RawConnection(reader, writer)
    await connection.send(SETTINGS)
    try:
        yield connection
    finally:
        # Not in good order: gRPC leaves the end of TLS unanswered.
        writer.transport.abort()


def grpc_message(body: bytes, *, compressed: bool = False) -> bytes:
    """Return ``body`` with gRPC's prefix."""
    return struct.pack(">BI", compressed, len(body)) + body


def _literal(name: str, value: str) -> bytes:
    """Return a header field in HPACK, without index and without Huffman."""
    return b"\x00" + _string(name) + _string(value)


def _string(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    out, rest = bytearray([127]), len(data) - 127
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes([*out, rest]) + data
