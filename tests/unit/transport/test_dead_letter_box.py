"""The fold of `dead-letters`."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.dead_letters import DeadLetter, DeadLetterResolution
from rollstream.schemas.errors import InvalidMessageError
from rollstream.transport.dead_letter_box.letters import DeadLetterBox, LetterId, LetterState

ALL: tuple[LetterState, ...] = ("open", "replaying", "replayed", "dropped")
IDS = [LetterId("p.tasks", 0, offset) for offset in range(4)]


def letter(id_: LetterId = IDS[0], *, failed_at: float = 1.0, missing: int = 0, error: str = "e") -> DeadLetter:
    return DeadLetter(
        origin_topic=id_.topic,
        origin_partition=id_.partition,
        origin_offset=id_.offset,
        key=None,
        value=b"value",
        headers=[],
        role="r",
        worker_id="w",
        error_type="E",
        error=error,
        stack="s",
        failed_at=failed_at,
        bytes_missing=missing,
    )


def plan(run_id: str, *ids: LetterId, size: int = 1) -> DeadLetterResolution:
    texts = [id_.text for id_ in ids]
    return DeadLetterResolution(state="replaying", letters=texts, run_id=run_id, group_size=size, resolved_at=9.0)


def dropped(*ids: LetterId) -> DeadLetterResolution:
    return DeadLetterResolution(state="dropped", letters=[id_.text for id_ in ids])


def replayed(*ids: LetterId) -> DeadLetterResolution:
    return DeadLetterResolution(state="replayed", letters=[id_.text for id_ in ids])


letters = st.builds(
    letter,
    st.sampled_from(IDS),
    failed_at=st.integers(0, 5).map(float),
    missing=st.integers(0, 1),
    error=st.sampled_from(["a", "b"]),
)
some_ids = st.lists(st.sampled_from(IDS), min_size=1, unique=True)
resolutions = st.one_of(
    some_ids.map(lambda ids: dropped(*ids)),
    some_ids.map(lambda ids: replayed(*ids)),
    st.tuples(st.sampled_from(["r0", "r1"]), some_ids).map(lambda drawn: plan(drawn[0], *drawn[1])),
)


def folded(burials: list[tuple[int, DeadLetter]], decisions: list[DeadLetterResolution]) -> DeadLetterBox:
    box = DeadLetterBox(lambda each: each.error == "a")
    for offset, each in burials:
        box.bury(each, 0, offset)
    for each in decisions:
        box.resolve(each)
    return box


def content(box: DeadLetterBox) -> object:
    return [(box.get(id_), box.state(id_), box.resolution(id_), box.plan_of(id_)) for id_ in IDS]


@given(st.lists(letters), st.lists(resolutions), st.data())
def test_burials_may_come_in_any_order_before_and_after_resolutions(
    found: list[DeadLetter], decisions: list[DeadLetterResolution], data: st.DataObject
) -> None:
    burials = list(zip(count(), found, strict=False))
    expected = folded(burials, decisions)

    box = DeadLetterBox(lambda each: each.error == "a")
    left, waiting = data.draw(st.permutations(burials)), list(decisions)
    while left or waiting:
        if left and (not waiting or data.draw(st.booleans())):
            offset, each = left.pop()
            box.bury(each, 0, offset)
        else:
            box.resolve(waiting.pop(0))
    assert content(box) == content(expected)
    assert box.wanted(ALL) == expected.wanted(ALL)


@given(st.lists(resolutions), st.integers(0, 10))
def test_resolutions_that_are_read_again_change_nothing(decisions: list[DeadLetterResolution], again: int) -> None:
    once, twice = folded([], decisions), folded([], decisions)
    for each in decisions[:again]:
        twice.resolve(each)
    assert [once.state(id_) for id_ in IDS] == [twice.state(id_) for id_ in IDS]
    assert [once.plan_of(id_) for id_ in IDS] == [twice.plan_of(id_) for id_ in IDS]


@given(st.lists(resolutions))
def test_a_plan_holds_for_all_its_letters_or_for_none(decisions: list[DeadLetterResolution]) -> None:
    box = folded([], decisions)
    for id_ in IDS:
        holding = box.plan_of(id_)
        if holding is not None:
            assert all(box.plan_of(member) is holding for member in holding.letters)
            assert all(box.state(member) in ("replaying", "replayed") for member in holding.letters)


@given(st.lists(resolutions), st.lists(resolutions))
def test_what_was_sent_again_stays_so(first: list[DeadLetterResolution], more: list[DeadLetterResolution]) -> None:
    before, after = folded([], first), folded([], first + more)
    for id_ in IDS:
        if before.state(id_) == "replayed":
            assert after.state(id_) == "replayed"
        if before.plan_of(id_) is not None:
            assert after.plan_of(id_) == before.plan_of(id_)


def test_many_burials_of_one_record_are_one_letter_with_its_best_copy() -> None:
    box = DeadLetterBox()
    box.bury(letter(failed_at=5.0, missing=3, error="cut"), 1, 7)
    box.bury(letter(failed_at=2.0, error="old"), 0, 9)
    box.bury(letter(failed_at=3.0, error="new"), 0, 11)

    [found] = box.wanted(["open"])
    assert (found.burials, found.first_failed_at, found.last_failed_at) == (3, 2.0, 5.0)
    assert (found.head.error, found.place, found.value_bytes) == ("new", (0, 11), 5)
    assert (found.head.value, found.head.stack) == (None, "")


def test_states_follow_what_is_done() -> None:
    box = folded([(n, letter(id_)) for n, id_ in enumerate(IDS)], [dropped(IDS[0]), plan("r", IDS[1], IDS[2], size=2)])
    assert [box.state(id_) for id_ in IDS] == ["dropped", "replaying", "replaying", "open"]
    box.resolve(dropped(*IDS[1:3]))
    assert box.state(IDS[1]) == "replaying", "a replay that has begun cannot be dropped"
    box.resolve(replayed(*IDS[1:3]))
    box.resolve(plan("late", IDS[2], IDS[3]))
    assert [box.state(id_) for id_ in IDS] == ["dropped", "replayed", "replayed", "open"]
    box.resolve(plan("again", IDS[0]))
    assert box.state(IDS[0]) == "replaying", "what was dropped may be replayed all the same"


def test_of_two_plans_for_a_letter_the_first_holds() -> None:
    box = folded([], [plan("first", IDS[0], IDS[1]), plan("second", IDS[1], IDS[2]), plan("third", IDS[2])])
    assert [holding.run_id if (holding := box.plan_of(id_)) else None for id_ in IDS] == [
        "first",
        "first",
        "third",
        None,
    ]


def test_a_letter_that_fits_in_one_of_its_burials_is_wanted() -> None:
    box = DeadLetterBox(lambda each: each.error == "a")
    box.bury(letter(IDS[0], error="a"), 0, 0)
    box.bury(letter(IDS[0], error="b"), 0, 1)
    box.bury(letter(IDS[1], error="b"), 0, 2)
    assert [each.id for each in box.wanted(ALL)] == [IDS[0]]
    assert box.counts()["open"] == 1


@given(st.text(st.characters(blacklist_characters="/"), min_size=1), st.integers(0), st.integers(0))
def test_ids_read_back(topic: str, partition: int, offset: int) -> None:
    id_ = LetterId(topic, partition, offset)
    assert LetterId.parse(id_.text) == id_


@pytest.mark.parametrize("text", ["", "tasks", "tasks/1", "tasks/1/x", "/1/2", "tasks/-1/2", "tasks/1/2/3", "a/²/1"])
def test_what_names_no_record_is_refused(text: str) -> None:
    with pytest.raises(InvalidMessageError, match="names no record"):
        LetterId.parse(text)
