from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from rollstream.schemas.ids import group_id
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.batches import TrajectoryGroup
from rollstream.trainers.group_filters import reason_to_drop, training_group
from rollstream.trainers.groups import ArrivingGroup, GroupKey
from rollstream.trainers.settings import TrainerSettings
from rollstream.trainers.staleness import Ancestry
from rollstream.trainers.stream_state import Drop

Make = Callable[..., Trajectory]


def options(**settings: object) -> TrainerSettings:
    return TrainerSettings.model_validate({"min_members": 2, **settings})


def group_of(members: Sequence[Trajectory], settings: TrainerSettings, *, size: int = 4) -> TrajectoryGroup:
    arriving = ArrivingGroup(GroupKey("run", 0), group_id("run", 0), size, True, known_since_s=0)
    arriving.members.update({member.member_index: member for member in members})
    return training_group(arriving, settings, Ancestry(7), 0)


def test_every_member_that_is_set_aside_says_why(make_trajectory: Make) -> None:
    settings = options(truncated="drop_member", max_sample_tokens=10)
    group = group_of(
        [
            make_trajectory(0, 0, group_size=7),
            make_trajectory(0, 1, group_size=7, is_failed=True),
            make_trajectory(0, 2, group_size=7, reward=None),
            make_trajectory(0, 3, group_size=7, is_trainable=False),
            make_trajectory(0, 4, group_size=7, is_truncated=True),
            make_trajectory(0, 5, group_size=7, tokens=8),
            make_trajectory(0, 6, group_size=7, tokens=7),
        ],
        settings,
        size=7,
    )
    assert [t.member_index for t in group.trajectories] == [0, 6], "3 tokens of prompt and 7 are not too many"
    assert {t.member_index: why for t, why in zip(group.excluded, group.exclusions, strict=True)} == {
        1: "failed",
        2: "unscored",
        3: "untrainable",
        4: "truncated",
        5: "overlong",
    }


@pytest.mark.parametrize(
    ("settings", "drop"),
    [
        ({}, None),
        ({"truncated": "drop_group"}, "truncated"),
        ({"truncated": "drop_member"}, None),
        ({"truncated": "drop_member", "min_members": 3}, "truncated"),
        ({"truncated": "drop_member", "min_members": 4}, "failed"),
        ({"partial_groups": "drop"}, "partial"),
        ({"min_members": 4}, "failed"),
        ({"max_sample_tokens": 4, "min_members": 1}, "overlong"),
        ({"drop_zero_variance": True}, "zero_variance"),
        ({"max_staleness": 0}, "stale"),
    ],
)
def test_a_group_is_dropped_for_one_reason(make_trajectory: Make, settings: dict[str, object], drop: Drop) -> None:
    """Four members: two that are well, one truncated, one that failed; unknown lineage makes them too old if asked."""
    chosen = options(**{"max_staleness": None, **settings})
    members = [
        make_trajectory(0, 0, group_size=4, lineage=99),
        make_trajectory(0, 1, group_size=4, lineage=99),
        make_trajectory(0, 2, group_size=4, lineage=99, is_truncated=True),
        make_trajectory(0, 3, group_size=4, is_failed=True),
    ]
    assert reason_to_drop(group_of(members, chosen), chosen) == drop


def test_a_whole_group_is_not_partial(make_trajectory: Make) -> None:
    settings = options(partial_groups="drop")
    members = [make_trajectory(0, member, group_size=2) for member in range(2)]
    assert reason_to_drop(group_of(members, settings, size=2), settings) is None
    assert reason_to_drop(group_of(members[:1], settings, size=2), settings) == "partial", "a member never came"
