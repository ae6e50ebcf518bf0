from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Sample, Trajectory, VersionSpan
from rollstream.trainers import TrainingBatch, TrajectoryGroup
from rollstream.trainers.packing import plan_rows

Make = Callable[..., Trajectory]

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine fails no property."""

lengths_of_samples = st.lists(st.integers(1, 40), max_size=40)


def arbitrary_sample(seed: int, prompt: int, response: int) -> Sample:
    random = np.random.default_rng(seed)
    mask = random.integers(0, 2, response).astype(np.uint8)
    mask[-1] = 1
    spans = [VersionSpan(i, i + 1, int(random.integers(9))) for i in np.flatnonzero(mask).tolist()]
    return Sample(
        prompt_ids=random.integers(0, 99, prompt).astype(np.int32),
        response_ids=random.integers(0, 99, response).astype(np.int32),
        response_mask=mask,
        response_logprobs=np.where(mask, -random.random(response), 0).astype(np.float32),
        version_spans=spans,
        turns=[],
        is_trainable=bool(random.integers(5)),
    )


@st.composite
def batches(draw: st.DrawFn, make: Make) -> TrainingBatch:
    sizes = draw(st.lists(st.lists(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=3),
                                   min_size=1, max_size=4), max_size=4))  # fmt: skip
    seed = draw(st.integers(0, 10_000))
    groups: list[TrajectoryGroup] = []
    for group, members in enumerate(sizes):
        trajectories: list[Trajectory] = []
        for member, samples in enumerate(members):
            trajectory = make(group, member, reward=draw(st.sampled_from([0.0, 0.5, 1.0, None])))
            trajectory.samples[:] = [arbitrary_sample(seed := seed + 1, p, r) for p, r in samples]
            trajectories.append(trajectory)
        groups.append(TrajectoryGroup("run", f"g{group}", group, len(members), tuple(trajectories)))
    return TrainingBatch(0, 0, 0, tuple(groups))


@unhurried
@given(lengths=lengths_of_samples, room=st.integers(40, 90), min_rows=st.integers(0, 50))
def test_every_sample_is_in_one_row_and_no_row_is_too_long(lengths: list[int], room: int, min_rows: int) -> None:
    rows = plan_rows(lengths, room, min_rows=min_rows)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in row) <= room for row in rows)
    assert len(rows) >= min_rows
    assert all(rows[: min(len(lengths), len(rows))]), "empty rows only where samples are fewer than rows"
    assert all(row == sorted(row) for row in rows)


@unhurried
@given(lengths=lengths_of_samples, room=st.integers(40, 90))
def test_rows_are_no_more_than_first_fit_decreasing_may_need(lengths: list[int], room: int) -> None:
    fewest = ceil(sum(lengths) / room)
    # Two rows that are at most half full could have been one.
    assert len(plan_rows(lengths, room)) <= max(2 * fewest, 1)


def test_long_samples_go_first_so_that_short_ones_fill_the_gaps() -> None:
    assert plan_rows([4, 4, 4, 6, 6, 6], 10) == [[0, 3], [1, 4], [2, 5]]


def test_rows_are_parted_by_tokens_where_more_are_asked_for() -> None:
    assert plan_rows([5, 1, 1, 3], 10, min_rows=2) == [[0], [1, 2, 3]]
    assert plan_rows([5, 1], 10, min_rows=4) == [[0], [1], [], []]


def test_a_sample_longer_than_a_row_is_an_error_that_names_it_or_alone(make_trajectory: Make) -> None:
    long, short = make_trajectory(0, 0, tokens=20), make_trajectory(0, 1, tokens=2)
    batch = TrainingBatch(0, 0, 0, (TrajectoryGroup("run", "g", 0, 2, (long, short)),))
    with pytest.raises(SettingsError, match=rf"{long.trajectory_id}.*23 tokens.*only 10.*alone"):
        batch.to_packed(10)
    packed = batch.to_packed(10, overlong="alone")
    assert [row.max_seqlen for row in packed] == [23, 5]
    assert packed.fill == pytest.approx(28 / 33)


def test_no_room_at_all_is_an_error() -> None:
    with pytest.raises(SettingsError, match="max_tokens=0"):
        plan_rows([], 0)


@pytest.mark.parametrize("min_rows", [0, 3, 100])
@unhurried
@given(data=st.data())
def test_packed_samples_are_the_samples_and_what_padding_has_beside_them(
    make_trajectory: Make, min_rows: int, data: st.DataObject
) -> None:
    batch = data.draw(batches(make_trajectory))
    packed = batch.to_packed(data.draw(st.integers(18, 60)), min_rows=min_rows, advantages="grpo")
    padded = batch.to_padded(0, advantages="grpo")
    originals = {(s.group, s.member, s.place): s for s in batch.samples()}
    padded_rows = {key: n for n, key in enumerate(zip(padded.groups, padded.members, padded.samples, strict=True))}
    seen: list[tuple[int, int, int]] = []
    for row in packed:
        assert len(row.input_ids) == row.cu_seqlens[-1] <= packed.max_tokens
        for k, key in enumerate(zip(row.groups.tolist(), row.members.tolist(), row.samples.tolist(), strict=True)):
            seen.append(key)
            original, sample = originals[key], originals[key].sample
            span = slice(int(row.cu_seqlens[k]), int(row.cu_seqlens[k + 1]))
            prompt = len(sample.prompt_ids)
            assert row.input_ids[span].tolist() == [*sample.prompt_ids, *sample.response_ids]
            assert row.position_ids[span].tolist() == list(range(original.tokens))
            assert row.response_mask[span].tolist() == [0] * prompt + sample.response_mask.tolist()
            assert row.logprobs[span].tolist() == [0.0] * prompt + sample.response_logprobs.tolist()
            assert row.versions[span].tolist() == [-1] * prompt + sample.response_versions.tolist()
            assert (row.sequence_ids[span] == k).all()
            n = padded_rows[key]
            for name in ("input_ids", "response_mask", "logprobs", "versions"):
                np.testing.assert_array_equal(getattr(row, name)[span], getattr(padded, name)[n, : original.tokens])
            np.testing.assert_array_equal(row.rewards[k], padded.rewards[n])
            assert row.advantages is not None
            assert padded.advantages is not None
            assert row.advantages[k] == padded.advantages[n]
            expected = row.advantages[k] * row.response_mask[span]
            np.testing.assert_array_equal(row.token_advantages[span], expected)
    assert sorted(seen) == sorted(originals)
    assert len(packed) >= min_rows


def test_rewards_lie_on_sampled_tokens_only(make_trajectory: Make) -> None:
    group = TrajectoryGroup("run", "g", 0, 2, (make_trajectory(0, 0, reward=2.0), make_trajectory(0, 1, reward=3.0)))
    (row,) = TrainingBatch(0, 0, 0, (group,)).to_packed(99)
    assert row.token_rewards.tolist() == [0, 0, 0, 2, 2, 0, 0, 0, 3, 3]
    with pytest.raises(SettingsError, match="advantages="):
        _ = row.token_advantages


def test_advantages_of_ones_own_go_to_every_sample_of_their_trajectory(make_trajectory: Make) -> None:
    first, second = make_trajectory(0, 0), make_trajectory(0, 1)
    second.samples.append(replace_prompt(second.samples[0]))
    batch = TrainingBatch(0, 0, 0, (TrajectoryGroup("run", "g", 0, 2, (first, second)),))
    own = [np.array([0.5, -0.25], dtype=np.float32)]
    padded = batch.to_padded(0, advantages=own)
    assert padded.advantages is not None
    assert padded.advantages.tolist() == [0.5, -0.25, -0.25]
    assert padded.samples.tolist() == [0, 0, 1]
    with pytest.raises(SettingsError, match=r"\[1\] members for groups of \[2\]"):
        batch.to_padded(0, advantages=[own[0][:1]])
    assert replace(batch, groups=()).to_packed(5).fill == 0.0


def replace_prompt(sample: Sample) -> Sample:
    return Sample(
        prompt_ids=np.array([7], dtype=np.int32),
        response_ids=sample.response_ids,
        response_mask=sample.response_mask,
        response_logprobs=sample.response_logprobs,
        version_spans=sample.version_spans,
        turns=[],
    )
