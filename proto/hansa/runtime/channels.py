"""The gRPC options that both sides set, with the reason for each.

The figures behind them were measured; docs/adr/0003-grpc-settings.md has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hansa.contract.limits import MESSAGE_BYTES, SUMMARY_BYTES

Options = Sequence[tuple[str, int]]

_SIZES: Final[Options] = (
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.absolute_max_metadata_size", 16 << 10),
)

# A result is one answer of up to a summary's size; all else stays small.
SERVER_OPTIONS: Final[Options] = (
    *_SIZES,
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", SUMMARY_BYTES),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without this one a frozen peer is noticed only after a minute.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # A second process must not silently share the port.
    ("grpc.so_reuseport", 0),
    # A handshake that stands still holds a descriptor.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_allowed_incoming_connections", 4_000),
)

# For callers who come and go: a connection without calls is closed, and one that is
# old is asked to end, with time for what is open. Clients connect again by themselves.
SHORT_CONNECTION_OPTIONS: Final[Options] = (
    ("grpc.max_connection_idle_ms", 5 * 60_000),
    ("grpc.max_connection_age_ms", 60 * 60_000),
    ("grpc.max_connection_age_grace_ms", 5 * 60_000),
)

_CLIENT: Final[Options] = (
    *_SIZES,
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Retries belong to the outbox and to request ids.
    ("grpc.enable_retries", 0),
)

CLIENT_OPTIONS: Final[Options] = (*_CLIENT, ("grpc.max_receive_message_length", MESSAGE_BYTES))
PEOPLE_CLIENT_OPTIONS: Final[Options] = (*_CLIENT, ("grpc.max_receive_message_length", SUMMARY_BYTES))
