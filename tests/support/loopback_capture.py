"""Records the TCP payloads that pass a set of ports on the loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection
from types import TracebackType
from typing import Final, Self

_ETH_P_IP: Final = 0x0800
_PACKET_OUTGOING: Final = 4
_ETHERNET_BYTES: Final = 14
_TCP: Final = 6
_LARGEST: Final = 1 << 17
_POLL_SECONDS: Final = 0.2


class LoopbackCapture:
    """A thread that reads every packet of ``lo``; needs CAP_NET_RAW."""

    def __init__(self, ports: Collection[int]) -> None:
        self._ports = frozenset(ports)
        self._chunks: list[bytes] = []
        self._stop = threading.Event()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
        self._socket.bind(("lo", _ETH_P_IP))
        self._socket.settimeout(_POLL_SECONDS)
        self._thread = threading.Thread(target=self._read, name="loopback-capture")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def payload(self) -> bytes:
        """Return what was recorded so far, in order of arrival."""
        return b"".join(self._chunks)

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                packet, address = self._socket.recvfrom(_LARGEST)
            except TimeoutError:
                continue
            # Each packet passes lo twice; the way in is enough.
            if address[2] != _PACKET_OUTGOING:
                self._keep(packet[_ETHERNET_BYTES:])

    def _keep(self, ip: bytes) -> None:
        header = (ip[0] & 0x0F) * 4
        if ip[9] != _TCP or len(ip) < header + 20:
            return
        tcp = ip[header:]
        ports = {int.from_bytes(tcp[0:2], "big"), int.from_bytes(tcp[2:4], "big")}
        if ports & self._ports:
            self._chunks.append(tcp[(tcp[12] >> 4) * 4 :])
