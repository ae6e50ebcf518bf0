"""Every Prometheus metric of a rollout worker, under one name each; served with those of the transport."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from rollstream.transport.metrics import REGISTRY

TRAJECTORIES = Counter(
    "rollstream_trajectories", "Tasks ended, by status and stop reason.", ["status", "stop_reason"], registry=REGISTRY
)
SAMPLED_TOKENS = Counter("rollstream_sampled_tokens", "Tokens the policy sampled.", registry=REGISTRY)
OBSERVED_TOKENS = Counter("rollstream_observed_tokens", "Tokens of tool results and users.", registry=REGISTRY)
RUNNING = Gauge("rollstream_episodes_running", "Episodes running now.", registry=REGISTRY)
EPISODE_SECONDS = Histogram(
    "rollstream_episode_seconds",
    "From the start of a task to its trajectory.",
    buckets=(0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600),
    registry=REGISTRY,
)
FAILED_ATTEMPTS = Counter(
    "rollstream_failed_attempts", "Attempts that ended before their episode, by kind.", ["kind"], registry=REGISTRY
)
POLICY_VERSION = Gauge("rollstream_policy_version", "Version of the weights in the engine.", registry=REGISTRY)
POLICY_PAUSE_SECONDS = Histogram(
    "rollstream_policy_pause_seconds",
    "Loading a policy version, generation paused.",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120),
    registry=REGISTRY,
)
