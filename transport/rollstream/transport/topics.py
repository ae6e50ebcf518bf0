"""The one declaration of all topics: names, partitions, retention, sizes. `topic_admin` makes the broker agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rollstream.schemas.errors import SettingsError

DEFAULT_PREFIX = "rollstream."
TOOL_CALLS = "tool-calls"
SCORED = "scored-trajectories"

MIB, GIB = 1024**2, 1024**3
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

RECORD_OVERHEAD_BYTES = 1024
"""Room in a batch for its own header and for key and headers of its one record."""


@dataclass(frozen=True, slots=True)
class TopicDeclaration:
    """What a topic must look like. ``config`` holds every override; what is not named stays at the broker's default."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict[str, str])
    replication_factor: int = 1

    @property
    def max_value_bytes(self) -> int:
        """Largest value (after our compression) that surely fits into a record of the topic."""
        return int(self.config["max.message.bytes"]) - RECORD_OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class _Plan:
    partitions: int
    max_message_bytes: int
    config: Mapping[str, str]


def _deleted_after(retention_ms: int, **more: int) -> dict[str, str]:
    """Retention drops whole segments, so short retention needs short segments."""
    segment_ms = max(10 * MINUTE_MS, retention_ms // 24)
    config = {"cleanup.policy": "delete", "retention.ms": str(retention_ms), "segment.ms": str(segment_ms)}
    return config | {name.replace("_", "."): str(value) for name, value in more.items()}


READABLE = {"compression.type": "uncompressed"}
"""The broker takes apart what a foreign client compressed by Kafka's own means; ours cannot read it."""

_COMPACTED = {
    "cleanup.policy": "compact",
    "segment.ms": str(10 * MINUTE_MS),
    "segment.bytes": str(16 * MIB),
    "min.cleanable.dirty.ratio": "0.1",
    "max.compaction.lag.ms": str(HOUR_MS),
}

_PLANS: Mapping[str, _Plan] = {
    "tasks": _Plan(16, 4 * MIB, _deleted_after(7 * DAY_MS)),
    # Holds a whole record of `trajectories`.
    "journal": _Plan(16, 17 * MIB, _deleted_after(7 * DAY_MS)),
    TOOL_CALLS: _Plan(16, 4 * MIB, _deleted_after(HOUR_MS, segment_bytes=128 * MIB)),
    "tool-results": _Plan(64, 4 * MIB, _deleted_after(HOUR_MS, segment_bytes=128 * MIB)),
    "trajectories": _Plan(8, 16 * MIB, _deleted_after(7 * DAY_MS, retention_bytes=8 * GIB)),
    # Holds a whole record of `trajectories` and its scores.
    SCORED: _Plan(8, 17 * MIB, _deleted_after(7 * DAY_MS, retention_bytes=8 * GIB)),
    "control": _Plan(1, MIB, _COMPACTED),
    # Holds a whole record of any other topic, its cause and its coordinates.
    "dead-letters": _Plan(4, 18 * MIB, _deleted_after(30 * DAY_MS)),
}

_FOLLOWERS: Mapping[str, str] = {"journal": "tasks", SCORED: "trajectories"}
"""Topics whose records lie in the partition of the same number as what they belong to."""


def topic_name(prefix: str, short: str) -> str:
    """The full name of a topic: ``tool-calls.default`` becomes ``rollstream.tool-calls.default``."""
    return f"{prefix}{short}"


def short_names(toolsets: Iterable[str] = ("default",)) -> tuple[str, ...]:
    """Short names of all topics, one of ``tool-calls`` per toolset."""
    per_toolset = [f"{TOOL_CALLS}.{toolset}" for toolset in toolsets]
    return tuple(name for short in _PLANS for name in (per_toolset if short == TOOL_CALLS else [short]))


def topic_table(
    prefix: str = DEFAULT_PREFIX,
    *,
    partitions: Mapping[str, int] | None = None,
    toolsets: Iterable[str] = ("default",),
    replication_factor: int = 1,
) -> dict[str, TopicDeclaration]:
    """All topics by short name.

    Args:
        prefix: what every full name begins with.
        partitions: overrides by short name. ``journal`` follows ``tasks``, because each task's journal lies in the
            partition of the same number, and ``scored-trajectories`` follows ``trajectories`` likewise.
        toolsets: each has its own ``tool-calls`` topic.
        replication_factor: copies of each partition; from three on, a write is acknowledged by at least two.

    Raises:
        SettingsError: an override names no topic or less than one partition, or one that follows
            another differs from it.
    """
    shorts = short_names(toolsets)
    counts = _partition_counts(shorts, partitions or {})
    durability = {"min.insync.replicas": "2"} if replication_factor >= 3 else {}
    return {
        short: TopicDeclaration(
            name=topic_name(prefix, short),
            partitions=counts[short],
            config={
                **_plan(short).config,
                **durability,
                **READABLE,
                "max.message.bytes": str(_plan(short).max_message_bytes),
            },
            replication_factor=replication_factor,
        )
        for short in shorts
    }


def _plan(short: str) -> _Plan:
    return _PLANS[TOOL_CALLS if short.startswith(f"{TOOL_CALLS}.") else short]


def _partition_counts(shorts: tuple[str, ...], overrides: Mapping[str, int]) -> dict[str, int]:
    unknown = sorted(set(overrides) - set(shorts))
    if unknown:
        raise SettingsError(f"partitions are set for {unknown!r}, but the topics are {sorted(shorts)}")
    counts = {short: overrides.get(short, _plan(short).partitions) for short in shorts}
    for follower, leader in _FOLLOWERS.items():
        counts[follower] = overrides.get(follower, counts[leader])
    for short, count in counts.items():
        if count < 1:
            raise SettingsError(f"partitions of {short!r} are {count}, at least 1 is needed")
    for follower, leader in _FOLLOWERS.items():
        if counts[follower] != counts[leader]:
            raise SettingsError(
                f"{follower!r} has {counts[follower]} partitions and {leader!r} {counts[leader]}: they must be equal, "
                f"leave {follower!r} out"
            )
    if counts["control"] != 1:
        raise SettingsError(
            f"'control' has {counts['control']} partitions: it must have 1, its offsets order all facts"
        )
    return counts
