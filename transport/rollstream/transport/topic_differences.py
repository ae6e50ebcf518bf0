"""Where a topic is not as declared, in words that say what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rollstream.transport.topics import TopicDeclaration

BOUND_TO_PARTITIONS = "records are found by key and partition number, so add partitions only between runs"


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the broker has it.

    Attributes:
        config: effective values by name, inherited ones included.
        overrides: names of those set on the topic itself.
    """

    name: str
    partitions: int
    replication_factor: int
    config: Mapping[str, str] = field(default_factory=dict[str, str])
    overrides: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class TopicDifference:
    """One way in which a topic is not as declared. ``repair``: how ``apply_topics`` would mend it, if it would."""

    topic: str
    aspect: str
    """``topic``, ``partitions``, ``replication_factor`` or the name of a config."""
    declared: str
    actual: str
    explanation: str
    repair: str | None = None


def find_differences(declared: Iterable[TopicDeclaration], present: Mapping[str, TopicState]) -> list[TopicDifference]:
    """Every difference, topic by topic. Pure."""
    return [difference for topic in declared for difference in topic_differences(topic, present.get(topic.name))]


def topic_differences(declared: TopicDeclaration, actual: TopicState | None) -> list[TopicDifference]:
    """Every difference of one topic; None: it does not exist."""
    if actual is None:
        explanation = f"the topic does not exist; declared with {partition_count(declared.partitions)}"
        return [TopicDifference(declared.name, "topic", "present", "missing", explanation, repair="apply creates it")]
    found = [
        _partition_difference(declared, actual),
        _replication_difference(declared, actual),
        *(_config_difference(declared, actual, name) for name in sorted(declared.config)),
        *(_undeclared(actual, name) for name in sorted(actual.overrides - set(declared.config))),
    ]
    return [difference for difference in found if difference is not None]


def _partition_difference(declared: TopicDeclaration, actual: TopicState) -> TopicDifference | None:
    if actual.partitions == declared.partitions:
        return None
    if actual.partitions < declared.partitions:
        explanation = (
            f"it has {partition_count(actual.partitions)}, {declared.partitions} are declared; {BOUND_TO_PARTITIONS}"
        )
        repair = "apply --grow adds the missing ones"
    else:
        explanation = (
            f"it has {partition_count(actual.partitions)}, only {declared.partitions} are declared; Kafka cannot take "
            "any away: declare as many in kafka.partitions, or use another prefix"
        )
        repair = None
    return TopicDifference(
        declared.name, "partitions", str(declared.partitions), str(actual.partitions), explanation, repair
    )


def _replication_difference(declared: TopicDeclaration, actual: TopicState) -> TopicDifference | None:
    if actual.replication_factor == declared.replication_factor:
        return None
    return TopicDifference(
        declared.name,
        "replication_factor",
        str(declared.replication_factor),
        str(actual.replication_factor),
        f"each partition has {actual.replication_factor} copies, {declared.replication_factor} are declared; only "
        "kafka-reassign-partitions can change that: run it, or set kafka.replication_factor to what is there",
    )


def _config_difference(declared: TopicDeclaration, actual: TopicState, name: str) -> TopicDifference | None:
    wanted, value = declared.config[name], actual.config.get(name)
    if value == wanted:
        return None
    origin = "set on the topic" if name in actual.overrides else "inherited from the broker"
    return TopicDifference(
        declared.name,
        name,
        wanted,
        str(value),
        f"{name} is {value} ({origin}), declared is {wanted}",
        repair=f"apply sets {name} to {wanted}",
    )


def _undeclared(actual: TopicState, name: str) -> TopicDifference:
    value = actual.config.get(name, "")
    return TopicDifference(
        actual.name,
        name,
        "not declared",
        value,
        f"{name} is set to {value} on the topic, but not declared",
        repair=f"apply removes it: {name} falls back to the broker's default",
    )


def partition_count(partitions: int) -> str:
    """The number with its noun."""
    return f"{partitions} partition" if partitions == 1 else f"{partitions} partitions"
