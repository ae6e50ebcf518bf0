"""Every Prometheus metric of a scorer, under one name each; served with those of the transport."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from rollstream.transport.metrics import REGISTRY

TRAJECTORIES = Counter(
    "rollstream_scorer_trajectories",
    "Trajectories sent on: scored, unscored (some scorer gave up) or passed (failed, or of an evaluation).",
    ["outcome"],
    registry=REGISTRY,
)
FAILURES = Counter(
    "rollstream_scorer_failures", "Scorings given up, by scorer and error.", ["scorer", "error"], registry=REGISTRY
)
SECONDS = Histogram(
    "rollstream_scorer_seconds",
    "Time a scoring took, its retries included.",
    ["scorer"],
    buckets=(0.001, 0.01, 0.1, 0.5, 2.0, 10.0, 60.0, 600.0),
    registry=REGISTRY,
)
REQUESTS = Counter(
    "rollstream_scorer_requests", "Requests to judges and reward models.", ["host", "status"], registry=REGISTRY
)
RUNNING = Gauge("rollstream_scorer_scorings_running", "Scorings running now.", registry=REGISTRY)
HELD = Gauge("rollstream_scorer_trajectories_held", "Trajectories taken on and not sent on yet.", registry=REGISTRY)
