from __future__ import annotations

import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from rollstream.cli.task_ledger import TaskLedger
from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.ids import group_id, trajectory_id
from rollstream.schemas.tasks import ChatMessage, RolloutTask
from rollstream.schemas.trajectories import Trajectory


def task(group: int, member: int, run_id: str = "run", group_size: int = 2) -> RolloutTask:
    return RolloutTask(
        run_id=run_id,
        group_id=group_id(run_id, group),
        group_index=group,
        group_size=group_size,
        member_index=member,
        trajectory_id=trajectory_id(run_id, group, member),
        messages=[ChatMessage(role="user", content="?")],
    )


def ended(of: RolloutTask) -> Trajectory:
    return Trajectory(
        run_id=of.run_id,
        trajectory_id=of.trajectory_id,
        group_id=of.group_id,
        group_index=of.group_index,
        group_size=of.group_size,
        member_index=of.member_index,
        status="completed",
        stop_reason="stop",
        samples=[],
        reward=1.0,
    )


def feed(ledger: TaskLedger, message: RolloutTask | Trajectory | ProducerProgress) -> None:
    if isinstance(message, RolloutTask):
        ledger.see_task(message)
    elif isinstance(message, Trajectory):
        ledger.see_trajectory(message)
    else:
        ledger.see_progress(message)


@given(st.integers(1, 5), st.integers(1, 4), st.randoms(use_true_random=False), st.booleans())
def test_a_run_is_done_exactly_when_its_last_missing_record_has_been_seen(
    groups: int, group_size: int, shuffle: random.Random, is_repeated: bool
) -> None:
    tasks = [task(group, member, group_size=group_size) for group in range(groups) for member in range(group_size)]
    finished = ProducerProgress(run_id="run", groups_emitted=groups, group_size=group_size, is_finished=True)
    needed: list[RolloutTask | Trajectory | ProducerProgress] = [*map(ended, tasks), finished]
    extra: list[RolloutTask | Trajectory | ProducerProgress] = [*tasks]
    if is_repeated:
        extra += [*tasks, *map(ended, tasks)]
    shuffle.shuffle(needed)
    last = needed.pop()
    messages = needed + [message for message in extra if message != last]
    shuffle.shuffle(messages)
    ledger = TaskLedger(frozenset({"run"}))
    for message in messages:
        feed(ledger, message)
    assert not ledger.is_done()
    feed(ledger, last)
    assert ledger.is_done()
    assert (ledger.emitted, ledger.ended) == (groups * group_size, groups * group_size)


def test_other_runs_do_not_count() -> None:
    ledger = TaskLedger(frozenset({"run"}))
    feed(ledger, task(0, 0, run_id="another"))
    feed(ledger, ended(task(0, 0, run_id="another")))
    feed(ledger, ProducerProgress(run_id="another", groups_emitted=0, group_size=1, is_finished=True))
    assert (ledger.emitted, ledger.ended, ledger.duplicates) == (0, 0, 0)
    assert not ledger.is_done()


def test_only_the_first_trajectory_of_a_task_counts() -> None:
    ledger = TaskLedger()
    one = task(0, 0)
    assert ledger.see_trajectory(ended(one))
    assert not ledger.see_trajectory(ended(one))
    assert ledger.duplicates == 1


def test_open_tasks_are_named() -> None:
    ledger = TaskLedger()
    one, two = task(0, 0), task(0, 1)
    for message in (one, two, ended(two)):
        feed(ledger, message)
    assert ledger.open_tasks() == {one.trajectory_id}


def test_the_trajectory_of_a_replacement_does_not_stand_for_a_task_that_is_still_open() -> None:
    ledger = TaskLedger()
    ledger.see_progress(ProducerProgress(run_id="run", groups_emitted=1, group_size=2, is_finished=True))
    first = task(0, 0)
    again = msgspec.structs.replace(first, replacement=1, trajectory_id=trajectory_id("run", 0, 0, replacement=1))
    ledger.see_trajectory(ended(first))
    ledger.see_trajectory(msgspec.structs.replace(ended(again), replacement=1))
    assert not ledger.is_done()
    ledger.see_trajectory(ended(task(0, 1)))
    assert ledger.is_done()
