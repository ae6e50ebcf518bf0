"""What `topics check` says about a topic that is not as declared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rollstream.transport.topic_admin import PartitionLag
from rollstream.transport.topic_differences import TopicState, find_differences
from rollstream.transport.topics import TopicDeclaration, topic_table

DECLARED = TopicDeclaration(
    "run.tasks", partitions=8, config={"retention.ms": "1000", "max.message.bytes": "4096"}, replication_factor=1
)
AS_DECLARED = TopicState(
    "run.tasks",
    partitions=8,
    replication_factor=1,
    config={"retention.ms": "1000", "max.message.bytes": "4096", "compression.type": "producer"},
    overrides=frozenset({"retention.ms", "max.message.bytes"}),
)


def explain(actual: TopicState | None) -> list[tuple[str, str, str | None]]:
    present = {} if actual is None else {actual.name: actual}
    return [(d.aspect, d.explanation, d.repair) for d in find_differences([DECLARED], present)]


def test_a_topic_as_declared_has_no_differences() -> None:
    assert explain(AS_DECLARED) == []


def test_a_missing_topic_is_one_difference() -> None:
    [(aspect, explanation, repair)] = explain(None)

    assert aspect == "topic"
    assert "does not exist" in explanation
    assert "8 partitions" in explanation
    assert repair == "apply creates it"


@pytest.mark.parametrize(("partitions", "repair"), [(4, "apply --grow adds the missing ones"), (9, None)])
def test_other_partition_counts_say_both_numbers(partitions: int, repair: str | None) -> None:
    [(aspect, explanation, found)] = explain(replace(AS_DECLARED, partitions=partitions))

    assert aspect == "partitions"
    assert str(partitions) in explanation
    assert "8" in explanation
    assert found == repair


def test_a_config_set_otherwise_says_both_values_and_where_it_comes_from() -> None:
    actual = replace(AS_DECLARED, config={**AS_DECLARED.config, "retention.ms": "5"})

    assert explain(actual) == [
        (
            "retention.ms",
            "retention.ms is 5 (set on the topic), declared is 1000",
            "apply sets retention.ms to 1000",
        )
    ]


def test_an_inherited_value_that_happens_to_be_the_declared_one_is_fine() -> None:
    assert explain(replace(AS_DECLARED, overrides=frozenset({"retention.ms"}))) == []


def test_an_inherited_value_that_differs_is_called_inherited() -> None:
    actual = replace(
        AS_DECLARED,
        config={**AS_DECLARED.config, "max.message.bytes": "1"},
        overrides=frozenset({"retention.ms"}),
    )

    [(_, explanation, _)] = explain(actual)
    assert "inherited from the broker" in explanation


def test_an_override_that_is_not_declared_is_a_difference() -> None:
    actual = replace(AS_DECLARED, overrides=AS_DECLARED.overrides | {"compression.type"})

    [(aspect, explanation, _)] = explain(actual)
    assert aspect == "compression.type"
    assert "producer" in explanation
    assert "not declared" in explanation


def test_other_copies_cannot_be_mended_by_apply() -> None:
    [(aspect, explanation, repair)] = explain(replace(AS_DECLARED, replication_factor=3))

    assert aspect == "replication_factor"
    assert "3 copies, 1 are declared" in explanation
    assert repair is None


def test_topics_that_are_not_declared_do_not_count() -> None:
    stranger = replace(AS_DECLARED, name="run.notes")

    assert find_differences([DECLARED], {stranger.name: stranger, AS_DECLARED.name: AS_DECLARED}) == []


def test_an_empty_cluster_misses_every_declared_topic() -> None:
    table = topic_table()

    assert {d.topic for d in find_differences(table.values(), {})} == {topic.name for topic in table.values()}


@pytest.mark.parametrize(
    ("committed", "beginning", "end", "lag"), [(7, 0, 10, 3), (None, 4, 10, 6), (2, 4, 10, 6), (10, 0, 10, 0)]
)
def test_lag_counts_only_records_that_are_still_there(
    committed: int | None, beginning: int, end: int, lag: int
) -> None:
    assert PartitionLag("t", 0, committed, beginning, end).lag == lag
