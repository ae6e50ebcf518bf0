from __future__ import annotations

from collections.abc import Callable

import pytest

from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.batch_forming import BatchFormer
from rollstream.trainers.settings import TrainerSettings
from rollstream.trainers.stream_state import PublishedPolicy

Make = Callable[..., Trajectory]
POLICY = PublishedPolicy(uri="somewhere", manifest_sha256="0" * 64)
LINEAGE = 7


class Feed:
    """A former with a log of one partition that tests write to."""

    def __init__(self, **settings: object) -> None:
        options = {"groups_per_batch": 1, "min_members": 1, **settings}
        self.former = BatchFormer(TrainerSettings.model_validate(options), "trajectories")
        self.former.open_lineage(LINEAGE, is_restored=False)
        self._offset = 0

    def add(self, *trajectories: Trajectory) -> None:
        for trajectory in trajectories:
            self.former.add(trajectory, 0, self._offset, now_s=0.0)
            self._offset += 1

    def delivered(self) -> list[int]:
        """Group indices of all batches there are now, in order."""
        indices: list[int] = []
        while (batch := self.former.next_batch()) is not None:
            indices += [group.group_index for group in batch.groups]
        return indices


def finished(groups: int, *, run_id: str = "run", is_train: bool = True) -> ProducerProgress:
    return ProducerProgress(run_id=run_id, groups_emitted=groups, group_size=1, is_finished=True, is_train=is_train)


def test_a_batch_has_its_full_number_of_groups(make_trajectory: Make) -> None:
    feed = Feed(groups_per_batch=2)
    feed.add(make_trajectory(0, 0, group_size=1))
    assert feed.former.next_batch() is None
    feed.add(make_trajectory(1, 0, group_size=1))
    batch = feed.former.next_batch()
    assert batch is not None
    assert (batch.number, len(batch)) == (0, 2)


def test_the_last_batch_of_a_finished_run_may_be_smaller_and_ends_the_stream(make_trajectory: Make) -> None:
    feed = Feed(groups_per_batch=2)
    feed.add(*(make_trajectory(index, 0, group_size=1) for index in range(3)))
    feed.former.note_progress(finished(3), now_s=0)
    assert feed.delivered() == [0, 1, 2]
    assert feed.former.has_ended


def test_the_stream_has_not_ended_while_a_group_is_awaited(make_trajectory: Make) -> None:
    feed = Feed(groups_per_batch=2)
    feed.add(make_trajectory(0, 0, group_size=1))
    feed.former.note_progress(finished(2), now_s=0)
    assert feed.former.next_batch() is None
    assert not feed.former.has_ended


def test_a_lost_group_lets_the_stream_end_and_gives_its_place_back(make_trajectory: Make) -> None:
    feed = Feed(group_deadline_s=10)
    feed.former.note_progress(finished(1), now_s=0)
    limit = feed.former.emit_limit
    feed.former.expire(now_s=10)
    assert feed.former.next_batch() is None
    assert feed.former.has_ended
    assert feed.former.stats().lost == 1
    assert feed.former.emit_limit == limit + 1


def test_the_stream_ends_after_max_batches(make_trajectory: Make) -> None:
    feed = Feed(max_batches=2)
    feed.add(*(make_trajectory(index, 0, group_size=1) for index in range(3)))
    assert feed.delivered() == [0, 1]
    assert feed.former.has_ended


def test_the_group_that_would_be_too_old_first_comes_first(make_trajectory: Make) -> None:
    feed = Feed(max_staleness=9)
    feed.former.published(5, POLICY)
    for index, version in enumerate((5, 3, 3, 4)):
        feed.add(make_trajectory(index, 0, group_size=1, version=version, lineage=LINEAGE))
    assert feed.delivered() == [1, 2, 3, 0]


@pytest.mark.parametrize(("version", "reaches_the_trainer"), [(3, True), (2, False)])
def test_staleness_is_bounded_at_delivery(make_trajectory: Make, version: int, reaches_the_trainer: bool) -> None:
    feed = Feed(max_staleness=2)
    feed.add(make_trajectory(0, 0, group_size=1, version=version, lineage=LINEAGE))
    feed.former.published(5, POLICY)
    assert feed.delivered() == ([0] if reaches_the_trainer else [])
    assert feed.former.stats().stale_dropped == (0 if reaches_the_trainer else 1)


def test_a_group_that_waited_too_long_in_memory_is_dropped_too(make_trajectory: Make) -> None:
    feed = Feed(groups_per_batch=2, max_staleness=1)
    feed.add(make_trajectory(0, 0, group_size=1, version=0, lineage=LINEAGE))
    assert feed.former.next_batch() is None, "judged once while it was young enough"
    feed.former.published(2, POLICY)
    feed.add(make_trajectory(1, 0, group_size=1, version=2, lineage=LINEAGE))
    assert feed.delivered() == []
    assert feed.former.stats().stale_dropped == 1


def test_trajectories_of_an_unknown_lineage_are_stale(make_trajectory: Make) -> None:
    feed = Feed()
    feed.add(make_trajectory(0, 0, group_size=1, version=1, lineage=LINEAGE + 1))
    assert feed.delivered() == []
    assert feed.former.stats().stale_dropped == 1


def test_without_an_age_limit_their_age_is_unknown(make_trajectory: Make) -> None:
    feed = Feed(max_staleness=None)
    feed.add(make_trajectory(0, 0, group_size=1, version=1, lineage=LINEAGE + 1))
    batch = feed.former.next_batch()
    assert batch is not None
    assert batch.groups[0].staleness is None


def test_failed_and_unscored_members_are_set_aside(make_trajectory: Make) -> None:
    feed = Feed(min_members=2)
    feed.add(
        make_trajectory(0, 0, group_size=5),
        make_trajectory(0, 1, group_size=5, is_failed=True),
        make_trajectory(0, 2, group_size=5, reward=None),
        make_trajectory(0, 3, group_size=5, is_trainable=False),
        make_trajectory(0, 4, group_size=5, reward=0.0),
    )
    batch = feed.former.next_batch()
    assert batch is not None
    [group] = batch.groups
    assert [t.member_index for t in group.trajectories] == [0, 4]
    assert [t.member_index for t in group.excluded] == [1, 2, 3]


def test_a_trainer_that_scores_by_itself_gets_unscored_members(make_trajectory: Make) -> None:
    feed = Feed(needs_reward=False)
    feed.add(make_trajectory(0, 0, group_size=1, reward=None))
    assert feed.delivered() == [0]


def test_a_group_with_too_few_trainable_members_is_dropped_as_failed(make_trajectory: Make) -> None:
    feed = Feed(min_members=2)
    feed.add(make_trajectory(0, 0), make_trajectory(0, 1, is_failed=True))
    feed.add(make_trajectory(1, 0, group_size=1))
    assert feed.delivered() == [1], "no more members are asked for than the group has"
    assert feed.former.stats().failed_dropped == 1


@pytest.mark.parametrize(("drop", "delivered"), [(True, [1]), (False, [0, 1])])
def test_groups_without_variance_are_dropped_if_asked(make_trajectory: Make, drop: bool, delivered: list[int]) -> None:
    feed = Feed(drop_zero_variance=drop)
    feed.add(make_trajectory(0, 0, reward=1.0), make_trajectory(0, 1, reward=1.0))
    feed.add(make_trajectory(1, 0, reward=1.0), make_trajectory(1, 1, reward=0.0))
    assert feed.delivered() == delivered


def test_producers_may_emit_what_is_under_way_finished_and_dropped(make_trajectory: Make) -> None:
    feed = Feed(groups_per_batch=2, pipeline_depth=1)
    former = feed.former
    assert former.emit_limit == 4
    feed.add(*(make_trajectory(index, 0, group_size=1, lineage=LINEAGE) for index in range(2)))
    feed.add(make_trajectory(2, 0, group_size=1, is_failed=True))
    assert former.next_batch() is not None
    assert former.emit_limit == 5, "the batch is not finished, the failed group is given back"
    former.published(1, POLICY)
    assert former.emit_limit == (1 + 1 + 1) * 2 + 1


def test_the_limit_leaves_room_for_runs_that_are_not_trained_on(make_trajectory: Make) -> None:
    feed = Feed(run_id="run", pipeline_depth=0)
    feed.former.note_progress(finished(40, run_id="former"), now_s=0)
    feed.former.note_progress(finished(9, run_id="eval", is_train=False), now_s=0)
    assert feed.former.emit_limit == 1 + 40


def test_only_the_wanted_run_is_trained_on(make_trajectory: Make) -> None:
    feed = Feed(run_id="b")
    feed.add(make_trajectory(0, 0, group_size=1, run_id="a"), make_trajectory(1, 0, group_size=1, run_id="b"))
    assert feed.delivered() == [1]
    assert feed.former.stats().consumed == 1


def test_evaluations_reach_no_batch_and_come_once(make_trajectory: Make) -> None:
    feed = Feed(max_staleness=0)
    feed.former.published(9, POLICY)
    limit = feed.former.emit_limit
    feed.add(*(make_trajectory(0, member, run_id="eval", is_train=False) for member in range(2)))
    assert feed.delivered() == []
    [group] = feed.former.take_evaluations()
    assert [t.member_index for t in group.trajectories] == [0, 1]
    assert feed.former.take_evaluations() == []
    assert feed.former.emit_limit == limit


@pytest.mark.parametrize("version", [2, 3])
def test_policy_versions_only_grow(version: int) -> None:
    feed = Feed()
    feed.former.published(3, POLICY)
    with pytest.raises(SettingsError, match=f"policy version {version} cannot follow 3"):
        feed.former.check_version(version)
    feed.former.check_version(4)


def test_staleness_is_counted_per_delivered_trajectory(make_trajectory: Make) -> None:
    feed = Feed()
    feed.former.published(3, POLICY)
    feed.add(make_trajectory(0, 0, version=3, lineage=LINEAGE), make_trajectory(0, 1, version=1, lineage=LINEAGE))
    assert feed.delivered() == [0]
    stats = feed.former.stats()
    assert (stats.max_staleness, stats.mean_staleness) == (2, 1.0)


def emitted(groups: int) -> ProducerProgress:
    return ProducerProgress(run_id="run", groups_emitted=groups, group_size=1)


def held_feed(make: Make, **settings: object) -> Feed:
    """At version 2, groups 4 and 5 are complete and group 0, begun at version 0, is under way; batches are of two."""
    feed = Feed(groups_per_batch=2, max_staleness=2, **settings)
    feed.former.note_progress(emitted(6), now_s=0)
    for version in range(2):
        feed.add(*(make(1 + 2 * version + i, 0, group_size=1, version=version, lineage=LINEAGE) for i in range(2)))
        assert feed.former.next_batch() is not None
        feed.former.published(version + 1, POLICY)
    feed.add(*(make(index, 0, group_size=1, version=2, lineage=LINEAGE) for index in (5, 6)))
    return feed


def test_a_batch_is_held_back_until_the_slow_group_is_there(make_trajectory: Make) -> None:
    feed = held_feed(make_trajectory)
    assert feed.former.next_batch() is None
    assert [group.key.group_index for group in feed.former.held_for] == [0]
    feed.add(make_trajectory(0, 0, group_size=1, version=0, lineage=LINEAGE))
    assert feed.delivered()[:2] == [0, 5]
    assert feed.former.held_for == []
    assert feed.former.stats().batches_held == 1


def test_a_batch_is_held_back_no_longer_than_to_the_groups_deadline(make_trajectory: Make) -> None:
    feed = held_feed(make_trajectory, group_deadline_s=10)
    assert feed.former.next_batch() is None
    feed.former.expire(10)
    batch = feed.former.next_batch()
    assert batch is not None
    assert [group.group_index for group in batch.groups] == [5, 6]


def test_a_batch_is_not_held_back_for_a_group_that_turns_out_to_be_too_old(make_trajectory: Make) -> None:
    """A member arrives that a lagging worker drew with weights before those of the group's start."""
    feed = Feed(groups_per_batch=1, max_staleness=1, pipeline_depth=1)
    feed.former.note_progress(emitted(2), now_s=0)
    feed.former.published(1, POLICY)
    feed.add(make_trajectory(1, 0, group_size=1, version=1, lineage=LINEAGE))
    assert feed.former.next_batch() is None
    feed.add(make_trajectory(0, 0, group_size=2, version=0, lineage=LINEAGE + 1))
    assert feed.delivered() == [1]


@pytest.mark.parametrize("settings", [{"stale": "drop"}, {"is_observer": True}])
def test_who_need_not_wait_does_not(make_trajectory: Make, settings: dict[str, object]) -> None:
    feed = held_feed(make_trajectory, **settings)
    assert feed.delivered() == [5, 6]


def test_a_full_buffer_ends_the_wait_for_slow_groups(make_trajectory: Make) -> None:
    feed = held_feed(make_trajectory, buffer_bytes=1)
    assert feed.delivered() == [5, 6]
    assert (feed.former.stats().batches_held, feed.former.stats().holds_given_up) == (1, 1)


def test_a_restored_trainer_holds_back_the_same_batch(make_trajectory: Make) -> None:
    feed = held_feed(make_trajectory)
    state = feed.former.state()
    again = BatchFormer(TrainerSettings(groups_per_batch=2, max_staleness=2, min_members=1), "trajectories", state)
    again.open_lineage(LINEAGE + 1, is_restored=True)
    again.note_progress(emitted(6), now_s=0)
    for index in (5, 6):
        again.add(make_trajectory(index, 0, group_size=1, version=2, lineage=LINEAGE), 0, index - 1, now_s=0)
    assert again.has_caught_up
    assert again.next_batch() is None
    assert [group.key.group_index for group in again.held_for] == [0]


def test_a_trainer_that_publishes_every_fourth_version_is_held_back_in_time(make_trajectory: Make) -> None:
    feed = Feed(groups_per_batch=1, max_staleness=6)
    feed.former.note_progress(emitted(4), now_s=0)
    feed.add(make_trajectory(1, 0, group_size=1, lineage=LINEAGE))
    assert feed.delivered() == [1]
    feed.former.published(4, POLICY)
    feed.add(make_trajectory(2, 0, group_size=1, version=4, lineage=LINEAGE))
    assert feed.delivered() == [], "at version 8 group 0 would be too old"


EACH = 8
"""Groups that a trainer takes one by one from a policy to the next."""


def one_by_one(make: Make) -> Feed:
    """At version 1 the groups 0 to 7 are trained on, and as many more are under way that began with them."""
    feed = Feed(groups_per_batch=1, pipeline_depth=2 * EACH - 1, max_staleness=4)
    feed.former.note_progress(emitted(2 * EACH), now_s=0)
    feed.add(*(make(index, 0, group_size=1, version=0, lineage=LINEAGE) for index in range(EACH)))
    assert feed.delivered() == list(range(EACH))
    feed.former.published(1, POLICY)
    return feed


def test_a_trainer_that_takes_several_batches_for_a_policy_waits_only_when_places_run_out(
    make_trajectory: Make,
) -> None:
    feed = one_by_one(make_trajectory)
    for version in range(1, 4):
        fresh = range((version + 1) * EACH, (version + 2) * EACH)
        feed.former.note_progress(emitted(fresh.stop), now_s=0)
        feed.add(*(make_trajectory(i, 0, group_size=1, version=version, lineage=LINEAGE) for i in fresh))
        assert feed.delivered() == list(fresh), "the slow ones have places in the versions to come"
        feed.former.published(version + 1, POLICY)
    feed.former.note_progress(emitted(6 * EACH), now_s=0)
    feed.add(make_trajectory(5 * EACH, 0, group_size=1, version=4, lineage=LINEAGE))
    assert feed.delivered() == [], "this is their last version"
    assert len(feed.former.held_for) == EACH
    slow = range(EACH, 2 * EACH)
    feed.add(*(make_trajectory(i, 0, group_size=1, version=0, lineage=LINEAGE) for i in slow))
    assert feed.delivered() == [*slow, 5 * EACH]


def test_a_restart_between_two_policies_does_not_change_how_many_groups_a_policy_takes(make_trajectory: Make) -> None:
    feed = one_by_one(make_trajectory)
    feed.add(*(make_trajectory(i, 0, group_size=1, version=1, lineage=LINEAGE) for i in range(EACH, EACH + 3)))
    assert len(feed.delivered()) == 3
    settings = TrainerSettings(groups_per_batch=1, pipeline_depth=2 * EACH - 1, max_staleness=4, min_members=1)
    again = BatchFormer(settings, "trajectories", feed.former.state())
    for former in (feed.former, again):
        former.published(3, POLICY)
        assert (former.state().version_step, former.state().version_groups, former.state().groups_since) == (2, 3, 0)


def test_what_is_held_takes_memory_until_it_is_taken(make_trajectory: Make) -> None:
    feed = Feed(groups_per_batch=1)
    feed.add(make_trajectory(0, 0, tokens=1000))
    held = feed.former.stats().buffered_bytes
    feed.add(make_trajectory(0, 0, tokens=1000), make_trajectory(1, 0, tokens=2000))
    assert feed.former.stats().buffered_bytes == 2 * held + 1000 * (4 + 4 + 1), "a copy takes none"
    feed.add(make_trajectory(0, 1), make_trajectory(1, 1))
    assert feed.delivered() == [0, 1]
    assert feed.former.stats().buffered_bytes == 0


def test_the_first_policy_of_a_trainer_says_nothing_about_its_steps(make_trajectory: Make) -> None:
    feed = Feed(groups_per_batch=1, max_staleness=2)
    feed.former.published(100, POLICY)
    feed.former.note_progress(emitted(3), now_s=0)
    for index in (1, 2):
        feed.add(make_trajectory(index, 0, group_size=1, version=100, lineage=LINEAGE))
    assert feed.delivered() == [1, 2], "group 0 can wait for version 102"


def test_after_a_roll_back_groups_count_with_their_distance_through_the_fork(make_trajectory: Make) -> None:
    """Group 0 began at version 3 and the trainer is back at 2: at version 4 it would be three versions away."""
    feed = Feed(groups_per_batch=1, max_staleness=2, pipeline_depth=0)
    for version in range(1, 4):
        feed.add(make_trajectory(version - 1, 0, group_size=1, version=version - 1, lineage=LINEAGE))
        assert len(feed.delivered()) == 1
        feed.former.published(version, POLICY)
    feed.former.rolled_back(feed.former.ancestry.rolled_back(LINEAGE + 1, 2), 2, POLICY)
    feed.former.note_progress(emitted(5), now_s=0)
    feed.former.published(3, POLICY)
    feed.add(make_trajectory(4, 0, group_size=1, version=3, lineage=LINEAGE + 1))
    assert feed.delivered() == []
    assert [(group.key.group_index, group.last_version) for group in feed.former.held_for] == [(3, 3)]


def test_a_group_nobody_was_allowed_to_emit_is_waited_for_by_what_has_arrived_of_it(make_trajectory: Make) -> None:
    """A producer without pace is ahead of the limit, which then says nothing about when group 50 began."""
    feed = Feed(groups_per_batch=1, max_staleness=1)
    feed.former.published(1, POLICY)
    feed.add(make_trajectory(0, 0, group_size=1, version=1, lineage=LINEAGE))
    feed.add(make_trajectory(50, 0, version=0, lineage=LINEAGE))
    assert feed.delivered() == []
    assert [(group.key.group_index, group.last_version) for group in feed.former.held_for] == [(50, 1)]
