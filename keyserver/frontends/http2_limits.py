"""What gRPC's HTTP/2 grants one caller, and all: streams, bytes, headers, pings, connections, with reasons.

What a caller holds before anything of it is known is bounded here; what follows is frontends/crowd.py.
"""

from __future__ import annotations

from verifier import limits

CONCURRENT_CALLS = 2_048  # of one server; each costs some 20 KiB, whatever it waits for
# Of one connection; HTTP/2 allows without end. A call counts until its memory is given back, so who has just
# cancelled many is granted fewer: the rest is reset with REFUSED_STREAM, which gRPC's clients make again.
CONCURRENT_STREAMS = 256
CONNECTIONS = 1_024  # of one server, within the usual limit of open files; each costs some 60 KiB
PENDING_CALLS = 1_500  # accepted by nobody yet, some 10 KiB each: beyond it calls are turned away by lot
UNREAD_BYTES = 16 * 1024  # of one call whose request nobody reads yet
METADATA_BYTES = 8 * 1024  # of the headers of one call: more is refused, far more ends the connection
SETTINGS_TIMEOUT_MS = 5_000  # honest callers need one round trip

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    # Above the limit by a little, the refusal is ours and says why; above this, gRPC's, unread.
    ("grpc.max_receive_message_length", limits.REQUEST_BYTES + 16 * 1024),
    ("grpc.max_send_message_length", 2 * limits.VERIFIER_STEPS_BYTES),
    ("grpc.max_concurrent_streams", CONCURRENT_STREAMS),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS),
    ("grpc.server.max_pending_requests", PENDING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_CALLS),
    ("grpc.max_metadata_size", METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES),
    ("grpc.http2.lookahead_bytes", UNREAD_BYTES),
    ("grpc.http2.bdp_probe", 0),  # or the window grows to 4 MiB for whoever sends fast
    ("grpc.server_handshake_timeout_ms", 10_000),  # of TLS
    # Until a caller acknowledges our settings, gRPC takes 16 MiB of headers from it.
    ("grpc.http2.settings_timeout", SETTINGS_TIMEOUT_MS),
    ("grpc.max_connection_idle_ms", 300_000),  # without a call
    ("grpc.keepalive_time_ms", 60_000),  # finds callers that went away without a word
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),  # followers of an idle stream may ping
    ("grpc.http2.max_ping_strikes", 2),  # then the connection ends
    ("grpc.http2.ping_on_rst_stream_percent", 100),  # a caller that resets must answer before it may go on
    ("grpc.so_reuseport", 0),  # a second process on the port is a mistake, and is told so
)
