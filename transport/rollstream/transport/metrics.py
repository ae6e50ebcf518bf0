"""Every Prometheus metric of the transport, under one name each, and the port where they are read."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

REGISTRY = CollectorRegistry()

_ACK_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)

PUBLISHED = Counter("rollstream_published_records", "Records acknowledged by the broker.", ["topic"], registry=REGISTRY)
PUBLISHED_BYTES = Counter(
    "rollstream_published_bytes", "Bytes of their values, after compression.", ["topic"], registry=REGISTRY
)
PUBLISH_SECONDS = Histogram(
    "rollstream_publish_seconds",
    "From publish() to the acknowledgement.",
    ["topic"],
    buckets=_ACK_BUCKETS_S,
    registry=REGISTRY,
)
PUBLISH_RETRIES = Counter(
    "rollstream_publish_retries", "Sends that failed and were repeated.", ["topic"], registry=REGISTRY
)
PUBLISHES_IN_FLIGHT = Gauge(
    "rollstream_publishes_in_flight", "Records that wait for their acknowledgement.", registry=REGISTRY
)
JOURNAL_SECONDS = Histogram(
    "rollstream_journal_seconds",
    "From the decision to append a record of the journal until it was read back.",
    ["kind"],
    buckets=(0.001, 0.002, 0.004, 0.006, 0.01, 0.025, 0.1, 0.5, 2, 10, 60),
    registry=REGISTRY,
)
RECORDS_GONE = Counter(
    "rollstream_records_deleted_unread",
    "Records that retention has deleted before anybody worked on them.",
    ["topic"],
    registry=REGISTRY,
)
DEAD_LETTERS = Counter(
    "rollstream_dead_letters", "Records buried, by where they came from and why.", ["topic", "error"], registry=REGISTRY
)
LOGGED_LETTERS = Counter(
    "rollstream_dead_letters_logged",
    "Records written to the log instead, because this user may not write dead letters.",
    ["topic", "error"],
    registry=REGISTRY,
)


@contextmanager
def served_metrics(port: int, address: str = "127.0.0.1") -> Generator[int]:
    """Serve the metrics over HTTP from a thread of its own; yields the port, chosen by the system for 0."""
    server, thread = start_http_server(port, addr=address, registry=REGISTRY)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
