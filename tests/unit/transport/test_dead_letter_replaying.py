"""What replaying letters does: who is refused, and what becomes of tasks."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas import ids
from rollstream.schemas.codec import encode
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.messages import Message
from rollstream.schemas.rules import MAX_ID_CHARS, check_message
from rollstream.schemas.tasks import ChatMessage, RolloutTask
from rollstream.schemas.trajectories import Sample, Trajectory, VersionSpan
from rollstream.transport.dead_letter_box.letters import LetterId
from rollstream.transport.dead_letter_box.replaying import (
    MAX_PLAN_LETTERS,
    CopyLetter,
    Refusal,
    TaskLetter,
    assess,
    replay_plans,
    replay_run_id,
    replayed_task,
)
from rollstream.transport.unreadable import UNREADABLE_SCHEMA

MAX_TASK_BYTES = 4_000_000


def task(group_index: int = 0, member_index: int = 0, **fields: object) -> RolloutTask:
    known: dict[str, object] = {"run_id": "run", "group_size": 8, "agent": "mine", "created_at": 100.0}
    return RolloutTask(
        **{**known, **fields},  # pyright: ignore[reportArgumentType]  -- fields of any type, checked by the codec
        group_id=ids.group_id("run", group_index),
        group_index=group_index,
        member_index=member_index,
        trajectory_id=ids.trajectory_id("run", group_index, member_index),
        messages=[ChatMessage(role="user", content="?")],
    )


def trajectory() -> Trajectory:
    sample = Sample(
        prompt_ids=np.ones(1, np.int32),
        response_ids=np.ones(1, np.int32),
        response_mask=np.ones(1, np.uint8),
        response_logprobs=np.zeros(1, np.float32),
        version_spans=[VersionSpan(0, 1, 0)],
        turns=[],
    )
    return Trajectory(
        run_id="r", trajectory_id="t", group_id="0" * 32, group_index=0, group_size=1, member_index=0,
        status="completed", stop_reason="stop", samples=[sample], reward=None,
    )  # fmt: skip


def letter_of(message: Message, topic: str, offset: int = 0, **fields: object) -> DeadLetter:
    record = encode(message)
    return letter(topic, record.value, record.headers, offset, **fields)


def letter(
    topic: str, value: bytes | None, headers: list[tuple[str, bytes]], offset: int = 0, **fields: object
) -> DeadLetter:
    return DeadLetter(
        origin_topic=topic, origin_partition=0, origin_offset=offset, key=b"k", value=value, headers=headers,
        role="r", worker_id="w", error_type="E", error="e",
        **fields,  # pyright: ignore[reportArgumentType]  -- as above
    )  # fmt: skip


def test_tasks_and_trajectories_can_be_replayed() -> None:
    found = assess(letter_of(task(3, 1), "p.tasks", 7), "p.", max_task_bytes=MAX_TASK_BYTES)
    assert found == TaskLetter(LetterId("p.tasks", 0, 7), "run", 3, 1, True)
    found = assess(letter_of(trajectory(), "p.trajectories"), "p.", max_task_bytes=MAX_TASK_BYTES)
    assert found == CopyLetter(LetterId("p.trajectories", 0, 0))


REFUSED: dict[str, tuple[DeadLetter, str]] = {
    "rubbish": (letter("p.tasks", b"\xff", []), "still cannot be decoded: header schema is ''"),
    "tombstone": (letter("p.tasks", None, []), "tombstone"),
    "a trajectory among tasks": (letter_of(trajectory(), "p.tasks"), "expected one of ['RolloutTask']"),
    "rubbish for trainers": (letter("p.trajectories", b"", []), "still cannot be decoded"),
    "a newer schema": (
        letter("p.tasks", b"\x80", [("schema", b"RolloutTask"), ("schema_version", b"9")]), "upgrade it",
    ),
    "not whole": (letter_of(task(), "p.tasks", bytes_missing=7), "7 bytes of the record did not fit"),
    "no bytes at all": (letter("p.tasks", b"", [("schema", UNREADABLE_SCHEMA)], 5), "its bytes are at p.tasks/0/5"),
    "as large as can be": (letter("p.tasks", b"x" * MAX_TASK_BYTES, []), "no room to say what it was"),
    "journal": (letter("p.journal", b"", []), "the order of the journal"),
    "a call": (letter("p.tool-calls.default", b"", []), "its deadline is over"),
    "a result": (letter("p.tool-results", b"", []), "nobody waits"),
    "a fact": (letter("p.control", b"", []), "an old fact would replace newer ones"),
    "no letter": (letter("p.dead-letters", b"", []), "never a letter"),
    "a foreign topic": (letter("other.tasks", b"", []), "'other.tasks' is no topic of ours"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_replayed_is_refused_with_a_reason(name: str) -> None:
    refused, reason = REFUSED[name]
    found = assess(refused, "p.", max_task_bytes=MAX_TASK_BYTES)
    assert isinstance(found, Refusal)
    assert reason in found.reason


places = st.builds(LetterId, st.just("p.tasks"), st.integers(0, 3), st.integers(0, 10**6))
task_letters = st.lists(
    st.builds(TaskLetter, places, st.sampled_from(["a", "b"]), st.integers(0, 5), st.integers(0, 3), st.just(True)),
    unique_by=lambda each: each.id,
)


@given(task_letters, st.randoms())
def test_plans_hold_every_letter_once_and_do_not_depend_on_order(letters: list[TaskLetter], random: Random) -> None:
    plans = list(replay_plans(letters, planned_at=1.0))
    shuffled = list(letters)
    random.shuffle(shuffled)
    assert list(replay_plans(shuffled, planned_at=1.0)) == plans
    assert sorted(id_ for plan in plans for id_ in plan.letters) == sorted(each.id for each in letters)
    assert len({plan.run_id for plan in plans}) == len(plans)
    assert all(len(plan.letters) == plan.groups * plan.group_size for plan in plans)


@given(task_letters)
def test_letters_of_one_group_become_one_group_and_no_others_join_it(letters: list[TaskLetter]) -> None:
    group_of = {each.id: (each.run_id, each.group_index) for each in letters}
    sizes = [sum(group == other for other in group_of.values()) for group in group_of.values()]
    for plan in replay_plans(letters, planned_at=1.0):
        for start in range(0, len(plan.letters), plan.group_size):
            members = plan.letters[start : start + plan.group_size]
            assert len({group_of[id_] for id_ in members}) == 1
            assert sizes[list(group_of).index(members[0])] == plan.group_size


def test_a_large_replay_is_divided_between_groups() -> None:
    letters = [
        TaskLetter(LetterId("p.tasks", 0, 3 * group + member), "run", group, member, True)
        for group in range(MAX_PLAN_LETTERS // 2)
        for member in range(3)
    ]
    plans = list(replay_plans(letters, planned_at=1.0))
    assert [plan.groups for plan in plans] == [3333, 5000 - 3333]


def test_a_replayed_task_is_new_in_name_and_old_in_substance() -> None:
    old = [task(4, 6, deadline=160.0, extra={"x": 1}), task(4, 2, replacement=3), task(1, 0)]
    letters = {LetterId("p.tasks", 0, n): letter_of(each, "p.tasks", n) for n, each in enumerate(old)}
    heads = [assess(each, "p.", max_task_bytes=MAX_TASK_BYTES) for each in letters.values()]
    alone, pair = replay_plans([head for head in heads if isinstance(head, TaskLetter)], planned_at=1000.0)

    new = [replayed_task(letters[id_], plan, n) for plan in (alone, pair) for n, id_ in enumerate(plan.letters)]
    for each in new:
        check_message(each)
        assert (each.messages, each.agent, each.created_at) == (old[0].messages, "mine", 1000.0)
        assert each.group_id == ids.group_id(each.run_id, each.group_index)
        assert each.trajectory_id == ids.trajectory_id(each.run_id, each.group_index, each.member_index)
        assert each.replacement == 0
    assert [(t.group_size, t.group_index, t.member_index) for t in new] == [(1, 0, 0), (2, 0, 0), (2, 0, 1)]
    assert [t.extra["replay_of"]["member_index"] for t in new] == [0, 2, 6]
    assert new[2].extra["replay_of"] == {
        "letter": "p.tasks/0/0",
        "run_id": "run",
        "group_index": 4,
        "member_index": 6,
        "trajectory_id": old[0].trajectory_id,
    }
    assert new[2].extra["x"] == 1
    assert [t.deadline for t in new] == [None, None, 1060.0]
    assert not {t.trajectory_id for t in new} & {t.trajectory_id for t in old}


@given(st.text(min_size=1, max_size=MAX_ID_CHARS))
def test_the_name_of_a_replay_is_short_enough_and_that_of_its_replay_not_longer(run_id: str) -> None:
    once = replay_run_id(run_id, [LetterId("p.tasks", 0, 1)])
    again = replay_run_id(once, [LetterId("p.tasks", 0, 2)])
    assert len(again) == len(once) <= MAX_ID_CHARS
    assert again != once
