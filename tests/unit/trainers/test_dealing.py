from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers import TrainingBatch, TrajectoryGroup, batch_advantages
from rollstream.trainers.dealing import DealBy, deal

Make = Callable[..., Trajectory]

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine fails no property."""

sizes = st.lists(st.lists(st.integers(1, 30), min_size=0, max_size=5), max_size=8)
"""Tokens of the response of each member of each group."""
ways = st.sampled_from(["group", "trajectory"])


def batch_of(make: Make, tokens: list[list[int]]) -> TrainingBatch:
    """Each group has an excluded member besides, and rewards that differ."""
    groups = tuple(
        TrajectoryGroup(
            "run", f"g{g}", g, len(members) + 1,
            tuple(make(g, m, tokens=count, reward=float((3 * g + m) % 4)) for m, count in enumerate(members)),
            excluded=(make(g, len(members), is_failed=True),), exclusions=("failed",),
        )
        for g, members in enumerate(tokens)
    )  # fmt: skip
    return TrainingBatch(7, 3, 5, groups)


def keys(batch: TrainingBatch) -> list[tuple[int, int]]:
    return [(t.group_index, t.member_index) for t in batch.trajectories()]


@unhurried
@given(tokens=sizes, world_size=st.integers(1, 6), by=ways)
def test_shares_hold_everything_once_in_the_order_of_the_batch(
    make_trajectory: Make, tokens: list[list[int]], world_size: int, by: DealBy
) -> None:
    batch = batch_of(make_trajectory, tokens)
    shares = deal(batch, world_size, by=by)
    assert [share.rank for share in shares] == list(range(world_size))
    assert sorted(key for share in shares for key in keys(share.batch)) == sorted(keys(batch))
    excluded = [t.group_index for s in shares for group in s.batch.groups for t in group.excluded]
    assert sorted(excluded) == list(range(len(tokens)))
    assert all(len(group.exclusions) == len(group.excluded) for s in shares for group in s.batch.groups)
    for share in shares:
        assert keys(share.batch) == sorted(keys(share.batch))
        assert (share.batch.number, share.batch.lineage, share.batch.version) == (7, 3, 5)
        assert share.lengths[share.rank] == tuple(sample.tokens for sample in share.batch.samples())
        assert share.sampled_tokens == sum(count for members in tokens for count in members)
    assert deal(batch, world_size, by=by)[0].lengths == shares[0].lengths


@unhurried
@given(tokens=sizes, world_size=st.integers(1, 6))
def test_by_group_the_members_of_a_prompt_stay_together(
    make_trajectory: Make, tokens: list[list[int]], world_size: int
) -> None:
    shares = deal(batch_of(make_trajectory, tokens), world_size)
    for share in shares:
        assert all(len(group.trajectories) == len(tokens[group.group_index]) for group in share.batch.groups)


@unhurried
@given(tokens=sizes, world_size=st.integers(1, 6), by=ways)
def test_no_rank_is_ahead_by_more_than_the_longest_piece(
    make_trajectory: Make, tokens: list[list[int]], world_size: int, by: DealBy
) -> None:
    shares = deal(batch_of(make_trajectory, tokens), world_size, by=by)
    loads = [sum(lengths) for lengths in shares[0].lengths]
    prompt = 3
    pieces = [count + prompt for members in tokens for count in members]
    if by == "group":
        pieces = [sum(count + prompt for count in members) for members in tokens]
    assert max(loads) - min(loads) <= max(pieces, default=0)


@unhurried
@given(tokens=sizes, world_size=st.integers(1, 6), by=ways, room=st.integers(33, 70))
def test_every_rank_makes_the_same_number_of_steps(
    make_trajectory: Make, tokens: list[list[int]], world_size: int, by: DealBy, room: int
) -> None:
    shares = deal(batch_of(make_trajectory, tokens), world_size, by=by)
    packed = [share.to_packed(room) for share in shares]
    steps = shares[0].micro_steps(room)
    assert [len(rows) for rows in packed] == [steps] * world_size
    assert min(len(share.batch.to_packed(room)) for share in shares) <= steps
    assert sum(len(row.input_ids) for rows in packed for row in rows) == sum(map(sum, shares[0].lengths))


@pytest.mark.parametrize("estimator", ["grpo", "reinforce_plus_plus_baseline"])
@unhurried
@given(tokens=sizes, world_size=st.integers(1, 6), by=ways)
def test_advantages_are_those_of_the_whole_batch(
    make_trajectory: Make, estimator: str, tokens: list[list[int]], world_size: int, by: DealBy
) -> None:
    batch = batch_of(make_trajectory, tokens)
    whole = batch_advantages(batch, estimator)
    for share in deal(batch, world_size, by=by, advantages=estimator):
        padded = share.batch.to_padded(0, advantages=share.advantages)
        expected = [whole[t.group_index][t.member_index] for t in share.batch.trajectories()]
        assert padded.advantages is not None
        np.testing.assert_array_equal(padded.advantages, np.array(expected, dtype=np.float32))


def test_more_ranks_than_groups_leave_some_with_an_empty_share(make_trajectory: Make) -> None:
    shares = deal(batch_of(make_trajectory, [[4, 4], [2]]), 4, advantages="grpo")
    assert [len(share.batch) for share in shares] == [1, 1, 0, 0]
    (row,) = shares[3].to_packed(14)
    assert (row.input_ids.size, row.max_seqlen, row.cu_seqlens.tolist()) == (0, 0, [0])
    assert shares[3].batch.to_padded(0).input_ids.shape == (0, 0)


def test_a_batch_is_dealt_to_someone(make_trajectory: Make) -> None:
    with pytest.raises(SettingsError, match="world_size=0"):
        deal(batch_of(make_trajectory, [[1]]), 0)
