"""Every Prometheus metric of a tool worker, under one name each; served with those of the transport."""

from __future__ import annotations

from typing import Literal

from prometheus_client import Counter, Gauge, Histogram

from rollstream.transport.metrics import REGISTRY

_RUN_BUCKETS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 600.0)

ANSWERS = Counter(
    "rollstream_tool_answers", "Answers given, by how the call ended.", ["tool", "status"], registry=REGISTRY
)
RUN_SECONDS = Histogram(
    "rollstream_tool_run_seconds", "Time calls took in the tool.", ["tool"], buckets=_RUN_BUCKETS_S, registry=REGISTRY
)
QUEUE_SECONDS = Histogram(
    "rollstream_tool_queue_seconds",
    "From the fetch of a call to its start.",
    buckets=_RUN_BUCKETS_S,
    registry=REGISTRY,
)
RUNNING = Gauge("rollstream_tool_calls_running", "Calls running now.", registry=REGISTRY)
SESSIONS = Gauge("rollstream_tool_sessions", "Open sandboxes of sessions.", registry=REGISTRY)
EndOfSession = Literal["over", "idle", "old", "reclaimed", "lost"]
SESSIONS_ENDED = Counter(
    "rollstream_tool_sessions_ended",
    "Sessions closed: attempt over, not used, too old, place needed by another, or lost.",
    ["cause"],
    registry=REGISTRY,
)
FAILED_TEARDOWNS = Counter(
    "rollstream_tool_failed_teardowns", "States of sessions that could not be taken down.", ["state"], registry=REGISTRY
)
CALLS_WAITING = Gauge("rollstream_tool_calls_waiting", "Calls waiting for a sandbox now.", registry=REGISTRY)
UNKNOWN_TOOL = "unknown"
"""Label of calls of tools that do not exist: a model may name anything."""
ISOLATION = Gauge(
    "rollstream_tool_isolation",
    "Layers of isolation, 1 where the self-test found one to hold.",
    ["layer"],
    registry=REGISTRY,
)
SIGNALS = Counter(
    "rollstream_tool_signals",
    "Refused system calls, attempts at the network and limits that ended a program, by kind.",
    ["signal"],
    registry=REGISTRY,
)
