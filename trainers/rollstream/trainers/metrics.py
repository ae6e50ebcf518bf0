"""Every Prometheus metric of a trainer's stream, under one name each."""

from __future__ import annotations

from prometheus_client import Gauge

from rollstream.transport.metrics import REGISTRY

RETENTION_LEFT = Gauge(
    "rollstream_trainer_retention_left",
    "Share of the retention left to the oldest trajectory still needed; 1 while nothing is at stake, 0: deleted.",
    ["trainer_id"],
    registry=REGISTRY,
)
