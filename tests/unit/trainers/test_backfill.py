from __future__ import annotations

from collections.abc import Callable

import pytest

from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.batch_forming import BatchFormer
from rollstream.trainers.settings import TrainerSettings

Make = Callable[..., Trajectory]
DEADLINE_S = 10.0


class Feed:
    """A former that asks for replacements, and a log of one partition."""

    def __init__(self, **settings: object) -> None:
        self.settings = TrainerSettings.model_validate(
            {"groups_per_batch": 1, "partial_groups": "backfill", "group_deadline_s": DEADLINE_S, **settings}
        )
        self.log: list[Trajectory] = []
        self.former = BatchFormer(self.settings, "trajectories")
        self.former.begin_at({0: 0})

    def add(self, *trajectories: Trajectory, now_s: float = 0.0) -> None:
        for trajectory in trajectories:
            self.former.add(trajectory, 0, len(self.log), now_s)
            self.log.append(trajectory)

    def restart(self) -> None:
        """Killed; what lies in the log from the checkpoint's position on is read again."""
        state = self.former.state()
        self.former = BatchFormer(self.settings, "trajectories", state)
        for offset in range(state.positions[0], len(self.log)):
            self.former.add(self.log[offset], 0, offset, now_s=0.0)

    def wanted(self) -> list[tuple[int, int, int]]:
        return [
            (member.group_index, member.member_index, member.replacement)
            for members in self.former.wanted().values()
            for member in members
        ]

    def delivered(self) -> list[tuple[int, int]]:
        """(member, replacement) of the trained members of the next batch."""
        batch = self.former.next_batch()
        return [(t.member_index, t.replacement) for t in batch.trajectories()] if batch else []


def test_a_failed_member_is_replaced_when_all_others_are_there(make_trajectory: Make) -> None:
    feed = Feed()
    feed.add(make_trajectory(0, 0, is_failed=True))
    assert feed.wanted() == [], "asked for once, when the group would close"
    feed.add(make_trajectory(0, 1))
    assert feed.wanted() == [(0, 0, 1)]
    assert feed.delivered() == []
    feed.add(make_trajectory(0, 0, replacement=1))
    assert feed.wanted() == []
    assert feed.delivered() == [(0, 1), (1, 0)]
    assert feed.former.stats().replacements == 1


@pytest.mark.parametrize("facts", [{"reward": None}, {"is_trainable": False}])
def test_unscored_and_untrainable_members_are_replaced_too(make_trajectory: Make, facts: dict[str, object]) -> None:
    feed = Feed()
    feed.add(make_trajectory(0, 0, **facts), make_trajectory(0, 1))
    assert feed.wanted() == [(0, 0, 1)]


def test_members_that_were_too_long_are_not_drawn_again_until_one_is_short(make_trajectory: Make) -> None:
    feed = Feed(truncated="drop_member", min_members=1)
    feed.add(make_trajectory(0, 0, is_truncated=True), make_trajectory(0, 1))
    assert feed.wanted() == []
    assert feed.delivered() == [(1, 0)]


def test_a_member_that_never_came_is_asked_for_at_the_deadline_and_given_up_at_the_next(make_trajectory: Make) -> None:
    feed = Feed(min_members=1)
    feed.add(make_trajectory(0, 0))
    feed.former.expire(DEADLINE_S)
    assert feed.wanted() == [(0, 1, 1)]
    assert feed.delivered() == []
    feed.former.expire(2 * DEADLINE_S - 1)
    assert feed.delivered() == []
    feed.former.expire(2 * DEADLINE_S)
    assert feed.wanted() == []
    assert feed.delivered() == [(0, 0)]
    feed.add(make_trajectory(0, 1, replacement=1))
    assert feed.former.stats().late == 1


def test_the_deadline_heard_from_the_producer_gives_a_round_of_its_own_too(make_trajectory: Make) -> None:
    feed = Feed(min_members=1)
    feed.former.note_progress(ProducerProgress(run_id="run", groups_emitted=1, group_size=2), now_s=0)
    feed.add(make_trajectory(0, 0), now_s=5)
    feed.former.expire(DEADLINE_S)
    assert feed.wanted() == [(0, 1, 1)], "it was emitted so long ago"
    feed.former.expire(DEADLINE_S + 6)
    assert feed.delivered() == []
    feed.former.expire(2 * DEADLINE_S)
    assert feed.delivered() == [(0, 0)]


def test_rounds_end_and_the_group_is_kept_with_what_it_has(make_trajectory: Make) -> None:
    feed = Feed(backfill_rounds=2, min_members=1)
    feed.add(make_trajectory(0, 0, is_failed=True), make_trajectory(0, 1))
    feed.add(make_trajectory(0, 0, is_failed=True, replacement=1))
    assert feed.wanted() == [(0, 0, 2)]
    feed.add(make_trajectory(0, 0, is_failed=True, replacement=2))
    assert feed.wanted() == []
    assert feed.delivered() == [(1, 0)]


def test_the_first_record_of_a_replacement_wins_and_originals_that_come_later_are_late(make_trajectory: Make) -> None:
    feed = Feed()
    feed.add(make_trajectory(0, 0))
    feed.former.expire(DEADLINE_S)
    feed.add(make_trajectory(0, 1, replacement=1, worker_id="first"))
    feed.add(make_trajectory(1, 0, is_failed=True), make_trajectory(1, 1))
    feed.add(make_trajectory(1, 0, replacement=1), make_trajectory(1, 0, is_failed=True))
    assert feed.former.stats().duplicates_dropped == 1
    batch = feed.former.next_batch()
    assert batch is not None
    assert [t.worker_id for t in batch.groups[0].trajectories] == ["w", "first"]


def test_a_replacement_is_unneeded_when_the_missing_member_has_come_after_all(make_trajectory: Make) -> None:
    feed = Feed()
    feed.add(make_trajectory(0, 0, group_size=3))
    feed.former.expire(DEADLINE_S)
    assert feed.wanted() == [(0, 1, 1), (0, 2, 1)]
    feed.add(make_trajectory(0, 1, group_size=3))
    assert feed.wanted() == [(0, 2, 1)]
    feed.add(make_trajectory(0, 1, group_size=3, replacement=1))
    assert feed.former.stats().unneeded == 1
    feed.add(make_trajectory(0, 2, group_size=3, replacement=1), make_trajectory(0, 2, group_size=3))
    assert feed.delivered() == [(0, 0), (1, 0), (2, 1)]


def test_an_original_behind_its_replacement_is_late(make_trajectory: Make) -> None:
    feed = Feed()
    feed.add(make_trajectory(0, 0, group_size=3))
    feed.former.expire(DEADLINE_S)
    feed.add(make_trajectory(0, 1, group_size=3, replacement=1), make_trajectory(0, 1, group_size=3))
    assert feed.former.stats().late == 1


def test_after_a_kill_the_same_is_wanted_again(make_trajectory: Make) -> None:
    feed = Feed(groups_per_batch=2, backfill_rounds=2)
    feed.add(make_trajectory(0, 0, is_failed=True), make_trajectory(0, 1))
    feed.add(
        make_trajectory(1, 0), make_trajectory(1, 1, reward=None), make_trajectory(1, 1, reward=None, replacement=1)
    )
    wanted = feed.wanted()
    assert wanted == [(0, 0, 1), (1, 1, 2)]
    feed.restart()
    assert feed.wanted() == wanted
    feed.add(make_trajectory(0, 0, replacement=1), make_trajectory(1, 1, replacement=2))
    feed.restart()
    assert feed.wanted() == []
    assert feed.delivered() == [(0, 1), (1, 0), (0, 0), (1, 2)]


def test_without_backfill_replacements_of_another_trainer_change_nothing(make_trajectory: Make) -> None:
    feed = Feed(partial_groups="keep", min_members=1)
    feed.add(make_trajectory(0, 0, group_size=3, is_failed=True), make_trajectory(0, 1, group_size=3))
    feed.add(make_trajectory(0, 0, group_size=3, replacement=1))
    assert feed.former.stats().unneeded == 1
    feed.add(make_trajectory(0, 2, group_size=3))
    assert feed.delivered() == [(1, 0), (2, 0)]


def test_evaluations_are_not_filled(make_trajectory: Make) -> None:
    feed = Feed()
    feed.add(*(make_trajectory(0, member, is_train=False, is_failed=True) for member in range(2)))
    assert feed.wanted() == []
    assert len(feed.former.take_evaluations()) == 1


def test_a_stream_does_not_end_before_replacements_are_there_or_given_up(make_trajectory: Make) -> None:
    feed = Feed()
    feed.former.note_progress(ProducerProgress(run_id="run", groups_emitted=1, group_size=2, is_finished=True), now_s=0)
    feed.add(make_trajectory(0, 0, is_failed=True), make_trajectory(0, 1))
    assert feed.delivered() == []
    assert not feed.former.has_ended
    feed.former.expire(DEADLINE_S)
    assert feed.delivered() == []
    assert feed.former.has_ended
    assert feed.former.stats().failed_dropped == 1
