"""The declared topic table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.codec import MAX_BODY_BYTES
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.journal import JournalRecord
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.tools import ToolResult
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.local_broker.configuration import MAX_RECORD_BYTES
from rollstream.transport.topics import short_names, topic_name, topic_table

DAY_MS = 86_400_000


def test_every_message_that_names_its_topic_finds_it_in_the_table() -> None:
    table = topic_table()

    for message in (RolloutTask, JournalRecord, ToolResult, Trajectory, DeadLetter):
        assert table[message.topic].name == f"rollstream.{message.topic}"


def test_each_toolset_has_a_topic_of_its_own() -> None:
    table = topic_table("run-1.", toolsets=("default", "browser"))

    assert table["tool-calls.browser"].name == topic_name("run-1.", "tool-calls.browser") == "run-1.tool-calls.browser"
    assert table["tool-calls.browser"].config == table["tool-calls.default"].config
    assert "tool-calls" not in table


def test_the_defaults_are_those_of_the_design() -> None:
    table = topic_table()

    partitions = {short: topic.partitions for short, topic in table.items()}
    assert partitions == {
        "tasks": 16,
        "journal": 16,
        "tool-calls.default": 16,
        "tool-results": 64,
        "trajectories": 8,
        "scored-trajectories": 8,
        "control": 1,
        "dead-letters": 4,
    }
    assert table["control"].config["cleanup.policy"] == "compact"
    assert {short for short, topic in table.items() if topic.config["cleanup.policy"] != "delete"} == {"control"}
    kept_days = {s: int(t.config["retention.ms"]) / DAY_MS for s, t in table.items() if s != "control"}
    assert kept_days["tasks"] == kept_days["journal"] == 7
    assert kept_days["tool-calls.default"] == kept_days["tool-results"] == 1 / 24
    assert kept_days["dead-letters"] == 30
    assert int(table["trajectories"].config["retention.bytes"]) > 0
    assert table["scored-trajectories"].max_value_bytes > table["trajectories"].max_value_bytes


def test_the_journal_follows_the_tasks() -> None:
    assert topic_table(partitions={"tasks": 3})["journal"].partitions == 3


def test_a_scored_trajectory_lies_in_the_partition_of_the_same_number() -> None:
    assert topic_table(partitions={"trajectories": 3})["scored-trajectories"].partitions == 3


@pytest.mark.parametrize(
    ("partitions", "named"),
    [
        ({"task": 3}, "task"),
        ({"tool-calls": 3}, "tool-calls"),
        ({"tasks": 4, "journal": 8}, "journal"),
        ({"trajectories": 0}, "trajectories"),
        ({"trajectories": 2, "scored-trajectories": 3}, "scored-trajectories"),
        ({"control": 2}, "control"),
    ],
)
def test_partitions_that_make_no_sense_are_refused_by_name(partitions: dict[str, int], named: str) -> None:
    with pytest.raises(SettingsError, match=f"'{named}'"):
        topic_table(partitions=partitions)


def test_a_dead_letter_holds_the_largest_record_of_any_topic() -> None:
    table = topic_table()
    largest = max(int(t.config["max.message.bytes"]) for s, t in table.items() if s != "dead-letters")

    assert table["dead-letters"].max_value_bytes >= largest + 64 * 1024


def test_the_local_broker_takes_the_largest_record_and_the_codec_reads_it() -> None:
    for topic in topic_table().values():
        assert int(topic.config["max.message.bytes"]) <= MAX_RECORD_BYTES
        assert topic.max_value_bytes < MAX_BODY_BYTES


def test_segments_are_short_enough_for_retention_to_bite() -> None:
    for short, topic in topic_table().items():
        if short != "control":
            assert int(topic.config["segment.ms"]) <= int(topic.config["retention.ms"]) / 6


def test_three_copies_mean_two_acknowledgements() -> None:
    assert "min.insync.replicas" not in topic_table(replication_factor=1)["tasks"].config
    assert topic_table(replication_factor=3)["tasks"].config["min.insync.replicas"] == "2"


@given(
    partitions=st.dictionaries(
        st.sampled_from([s for s in short_names() if s not in ("journal", "scored-trajectories", "control")]),
        st.integers(1, 300),
    )
)
def test_overrides_are_honoured_and_nothing_else_changes(partitions: dict[str, int]) -> None:
    table, default = topic_table(partitions=partitions), topic_table()

    leaders = {"journal": "tasks", "scored-trajectories": "trajectories"}
    for short, topic in table.items():
        led_by = leaders.get(short, short)
        assert topic.partitions == partitions.get(led_by, default[led_by].partitions)
        assert topic.config == default[short].config
