from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.errors import SettingsError
from rollstream.transport.access_admin import check_principal
from rollstream.transport.access_rules import AccessRule, Role, access_rules, touches
from rollstream.transport.settings import KafkaSettings

KAFKA = KafkaSettings(bootstrap="localhost:9092", prefix="p.", toolsets=("default", "search"))


def texts(role: Role, toolset: str | None = None) -> set[str]:
    return {str(rule) for rule in access_rules(role, KAFKA, toolset=toolset)}


def writers_of(short: str) -> set[str]:
    written = f"write topic p.{short}"
    toolsets: dict[str, str | None] = {"tool-worker": "default"}
    return {role for role in get_args(Role) if written in texts(role, toolsets.get(role))}


def test_a_tool_worker_may_read_its_calls_and_write_results_and_nothing_else() -> None:
    assert texts("tool-worker", "search") == {
        "describe topic p.tool-calls.search",
        "read topic p.tool-calls.search",
        "read group p.tool-workers.search",
        "describe topic p.tool-results",
        "write topic p.tool-results",
    }


def test_each_topic_is_written_by_the_roles_that_make_its_records() -> None:
    assert writers_of("tasks") == {"producer"}
    assert writers_of("journal") == writers_of("trajectories") == {"rollout-worker"}
    assert writers_of("tool-calls.default") == {"rollout-worker"}
    assert writers_of("tool-results") == {"tool-worker"}
    assert writers_of("scored-trajectories") == {"scorer"}
    assert writers_of("control") == {"rollout-worker", "producer", "trainer", "scorer", "archiver"}
    assert writers_of("dead-letters") == {"rollout-worker", "trainer", "scorer"}


def test_a_rollout_worker_may_be_confined_to_one_toolset() -> None:
    calls = {text for text in texts("rollout-worker") if "tool-calls" in text}
    assert calls == {f"{may} topic p.tool-calls.{name}" for may in ("describe", "write") for name in KAFKA.toolsets}
    assert not any("search" in text for text in texts("rollout-worker", "default"))


def test_a_trainer_commits_as_whatever_it_is_called() -> None:
    assert "read group p.trainer.*" in texts("trainer")


def test_a_toolset_must_be_named_known_and_of_use() -> None:
    with pytest.raises(SettingsError, match="name it, of"):
        access_rules("tool-worker", KAFKA)
    with pytest.raises(SettingsError, match=r"'tool-calls\.other' is not declared"):
        access_rules("tool-worker", KAFKA, toolset="other")
    with pytest.raises(SettingsError, match="leave it out"):
        access_rules("trainer", KAFKA, toolset="default")


@given(role=st.sampled_from(get_args(Role)), prefix=st.from_regex(r"[a-z]{1,8}\.", fullmatch=True))
def test_no_role_reaches_beyond_its_prefix(role: Role, prefix: str) -> None:
    kafka = KafkaSettings(bootstrap="localhost:9092", prefix=prefix)
    rules = access_rules(role, kafka, toolset="default" if role == "tool-worker" else None)
    assert all(rule.name.startswith(prefix) and rule.resource in ("topic", "group") for rule in rules)
    assert all(touches(rule, prefix) for rule in rules)
    assert not any(touches(rule, "OTHER.") for rule in rules)


def test_rights_of_others_that_reach_our_topics_are_seen() -> None:
    assert touches(AccessRule("topic", "*", "literal", "read"), "p.")
    assert touches(AccessRule("topic", "p", "prefixed", "read"), "p.")
    assert touches(AccessRule("topic", "p.tasks", "prefixed", "all"), "p.")
    assert touches(AccessRule("cluster", "kafka-cluster", "literal", "alter"), "p.")
    assert not touches(AccessRule("topic", "p", "literal", "read"), "p.")
    assert not touches(AccessRule("group", "q.", "prefixed", "read"), "p.")


@pytest.mark.parametrize("principal", ["tools", "", "User:", ":tools", "User tools"])
def test_a_principal_that_would_never_match_is_refused(principal: str) -> None:
    check_principal("User:tools")
    with pytest.raises(SettingsError, match="is not like 'User:tools'"):
        check_principal(principal)
