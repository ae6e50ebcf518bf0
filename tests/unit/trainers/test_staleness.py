from __future__ import annotations

from collections.abc import Callable

import pytest

from rollstream.schemas.control import TrainerStart
from rollstream.schemas.trajectories import Trajectory, VersionSpan
from rollstream.trainers.staleness import Ancestry, staleness


@pytest.mark.parametrize(
    ("token", "distance"),
    [
        ((30, 7), 0),
        ((30, 5), 2),
        ((20, 4), 3),  # the parent's, before the fork at 5
        ((20, 5), 2),  # the fork itself
        ((20, 9), 6),  # back from 9 to 5, then on to 7
        ((10, 2), 5),
        ((0, 0), 7),  # the model as it came
        ((0, 1), None),
        ((25, 6), None),  # somebody else's
    ],
)
def test_the_age_of_a_token_is_the_distance_through_the_forks(token: tuple[int, int], distance: int | None) -> None:
    ancestry = Ancestry(30, ((10, 2), (20, 5)))
    assert ancestry.distance(7, *token) == distance


def test_a_policy_loaded_before_the_trainer_knows_it_is_out_is_not_of_the_future() -> None:
    assert Ancestry(3).distance(4, 3, 5) == 0


def test_a_restored_trainer_goes_on_from_its_checkpoint() -> None:
    first = Ancestry(10).restored(20, 5)
    assert first == Ancestry(20, ((10, 5),))
    assert first.restored(30, 8) == Ancestry(30, ((10, 5), (20, 8)))


def test_a_follower_learns_the_ancestry_from_the_start_records() -> None:
    restored = TrainerStart(trainer_id="t", parent_lineage=10, parent_version=5)
    assert Ancestry(10).succeeded(20, restored) == Ancestry(20, ((10, 5),))
    assert Ancestry(4).succeeded(20, restored) == Ancestry(20, ((10, 5),)), "an unknown parent has no known parents"
    assert Ancestry(10).succeeded(20, TrainerStart(trainer_id="t")) == Ancestry(20)


def test_the_oldest_token_of_all_samples_counts(make_trajectory: Callable[..., Trajectory]) -> None:
    trajectory = make_trajectory(0, 0, version=5, lineage=3, tokens=4)
    sample = trajectory.samples[0]
    sample.version_spans[:] = [VersionSpan(0, 1, 6, 3), VersionSpan(1, 3, 2, 3), VersionSpan(3, 4, 5, 3)]
    assert staleness(trajectory, Ancestry(3), 7) == 5


def test_one_token_of_an_unknown_lineage_makes_the_age_unknown(make_trajectory: Callable[..., Trajectory]) -> None:
    trajectory = make_trajectory(0, 0, version=5, lineage=3)
    assert staleness(trajectory, Ancestry(4), 5) is None


def test_a_failed_trajectory_has_no_age(make_trajectory: Callable[..., Trajectory]) -> None:
    assert staleness(make_trajectory(0, 0, is_failed=True), Ancestry(9), 50) == 0


@pytest.mark.parametrize(
    ("version", "found"), [(0, (10, 0)), (2, (10, 2)), (3, (20, 3)), (5, (20, 5)), (6, (30, 6)), (9, (30, 9))]
)
def test_a_version_of_the_past_is_found_in_the_lineage_it_was_made_in(version: int, found: tuple[int, int]) -> None:
    assert Ancestry(30, ((10, 2), (20, 5))).at(version) == found


@pytest.mark.parametrize(
    ("version", "forks"),
    [
        (8, ((10, 2), (20, 5), (30, 8))),
        (5, ((10, 2), (20, 5), (30, 5))),
        (4, ((10, 2), (20, 4), (30, 4))),
        (2, ((10, 2), (20, 2), (30, 2))),
        (1, ((10, 1), (20, 1), (30, 1))),
    ],
)
def test_a_roll_back_leaves_the_history_where_the_version_lies(
    version: int, forks: tuple[tuple[int, int], ...]
) -> None:
    rolled_back = Ancestry(30, ((10, 2), (20, 5))).rolled_back(40, version)
    assert rolled_back == Ancestry(40, forks)
    assert rolled_back.distance(version, *Ancestry(30, ((10, 2), (20, 5))).at(version)) == 0


@pytest.mark.parametrize(
    ("forks", "lineage", "version", "token", "distance"),
    [
        (((10, 3),), 20, 3, (20, 3), 0),
        (((10, 3),), 20, 3, (20, 5), 2),
        (((10, 3),), 20, 2, (20, 5), 3),
        (((10, 3),), 20, 2, (10, 8), 6),
    ],
)
def test_tokens_of_a_lineage_that_is_rolled_back_altogether_keep_their_age(
    forks: tuple[tuple[int, int], ...], lineage: int, version: int, token: tuple[int, int], distance: int
) -> None:
    """The second roll-back goes as far as the first one, or further."""
    assert Ancestry(lineage, forks).rolled_back(40, version).distance(version, *token) == distance


def test_a_token_drawn_beyond_a_roll_back_is_as_old_as_the_way_through_the_fork() -> None:
    rolled_back = Ancestry(30).rolled_back(40, 5)
    assert rolled_back.distance(6, 30, 8) == 4, "back from 8 to 5, then on to 6"
