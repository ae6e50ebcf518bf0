from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollstream.transport.topic_watch import what_is_lost

ends = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.lists(st.integers(0, 99), min_size=1, max_size=4))


@given(ends, st.integers(0, 9))
def test_topics_that_only_grow_are_the_same(before: dict[str, list[int]], more: int) -> None:
    now = {topic: [end + more for end in old] + [0] * more for topic, old in before.items()}
    assert what_is_lost(dict(before), dict(now)) is None


def test_a_topic_that_is_gone_or_shorter_is_named() -> None:
    assert "topic 'a' was deleted while it was in use" in str(what_is_lost({"a": [3]}, {"a": None}))
    assert "a/1 ended at 5 and ends at 4 now" in str(what_is_lost({"a": [3, 5]}, {"a": [9, 4]}))
    assert what_is_lost({}, {"a": [0]}) is None, "nothing is known before the first look"
