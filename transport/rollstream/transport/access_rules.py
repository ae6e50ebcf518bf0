"""What each role may do with topics and consumer groups, and nothing besides. Pure.

Who runs model-written code gets least: a tool worker reads calls and writes results. It may not write `control`, where
a forged policy version would load foreign weights, nor read what others are given or have made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rollstream.schemas.errors import SettingsError
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topics import SCORED

Role = Literal["tool-worker", "rollout-worker", "producer", "trainer", "scorer", "archiver"]
Resource = Literal["topic", "group"]
Pattern = Literal["literal", "prefixed"]
Operation = Literal["read", "write", "describe", "describe-configs"]


@dataclass(frozen=True, slots=True, order=True)
class AccessRule:
    """Permission for one operation on one topic or consumer group, or on all whose names begin like it."""

    resource: str
    name: str
    pattern: str
    operation: str

    def __str__(self) -> str:
        name = f"{self.name}*" if self.pattern == "prefixed" else self.name
        return f"{self.operation} {self.resource} {name}"


def access_rules(role: Role, kafka: KafkaSettings, *, toolset: str | None = None) -> tuple[AccessRule, ...]:
    """The rules of a role, in order.

    Args:
        role: what the user runs.
        kafka: names the topics and groups.
        toolset: of a tool worker, the one it serves; of a rollout worker, the only one it may call (None: all).

    Raises:
        SettingsError: the toolset is not declared, is needed and not given, or means nothing for the role.
    """
    match role:
        case "tool-worker":
            if toolset is None:
                raise SettingsError(f"a tool worker serves one toolset: name it, of {sorted(kafka.toolsets)}")
            rules = [
                *_topic(kafka, f"tool-calls.{toolset}", "read"),
                *_topic(kafka, "tool-results", "write"),
                _group(kafka, f"tool-workers.{toolset}"),
            ]
        case "rollout-worker":
            called = kafka.toolsets if toolset is None else (toolset,)
            rules = [
                *_topic(kafka, "tasks", "read"),
                *_topic(kafka, "journal", "read", "write"),
                *_topic(kafka, "trajectories", "write"),
                *_topic(kafka, "control", "read", "write"),
                *_topic(kafka, "dead-letters", "write"),
                *_topic(kafka, "tool-results", "read"),
                *(rule for name in called for rule in _topic(kafka, f"tool-calls.{name}", "write")),
                _group(kafka, "rollout-workers"),
            ]
        case "producer":
            _refuse_toolset(role, toolset)
            rules = [*_topic(kafka, "tasks", "read", "write"), *_topic(kafka, "control", "read", "write")]
        case "trainer":
            _refuse_toolset(role, toolset)
            rules = [
                *_topic(kafka, "trajectories", "read", "describe-configs"),
                *_topic(kafka, SCORED, "read", "describe-configs"),
                *_topic(kafka, "control", "read", "write", "describe-configs"),
                *_topic(kafka, "dead-letters", "write", "describe-configs"),
                AccessRule("group", kafka.group("trainer."), "prefixed", "read"),
            ]
        case "scorer":
            _refuse_toolset(role, toolset)
            rules = [
                *_topic(kafka, "trajectories", "read"),
                *_topic(kafka, SCORED, "write"),
                *_topic(kafka, "control", "write"),
                *_topic(kafka, "dead-letters", "write"),
                _group(kafka, "scorers"),
            ]
        case "archiver":
            _refuse_toolset(role, toolset)
            rules = [
                *_topic(kafka, "trajectories", "read"),
                *_topic(kafka, SCORED, "read"),
                *_topic(kafka, "control", "write"),
                _group(kafka, "archivers"),
            ]
    return tuple(sorted(rules))


def touches(rule: AccessRule, prefix: str) -> bool:
    """Whether a rule of whomever concerns what lies under our prefix, or the cluster as a whole."""
    if rule.resource not in ("topic", "group"):
        return True
    begins_there = rule.name.startswith(prefix)
    return begins_there or rule.name == "*" or (rule.pattern == "prefixed" and prefix.startswith(rule.name))


def _topic(kafka: KafkaSettings, short: str, *operations: Operation) -> Iterable[AccessRule]:
    """Whoever uses a topic must be able to look at it."""
    name = kafka.topic(short)
    return [AccessRule("topic", name, "literal", operation) for operation in ("describe", *operations)]


def _group(kafka: KafkaSettings, short: str) -> AccessRule:
    return AccessRule("group", kafka.group(short), "literal", "read")


def _refuse_toolset(role: Role, toolset: str | None) -> None:
    if toolset is not None:
        raise SettingsError(f"a {role} has no toolset, but {toolset!r} is given: leave it out")
