"""SampleBuilder: tokens, masks, logprobs and versions stay aligned, whatever the episode does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.rollout_workers.sample_building import RecordedGeneration, SampleBuilder, TurnOutcome
from rollstream.schemas.trajectories import VersionSpan


def generation(ids: list[int], version: int = 1, cut: int | None = None) -> RecordedGeneration:
    spans = [VersionSpan(0, len(ids), version)]
    if cut is not None:
        spans = [VersionSpan(0, cut, version), VersionSpan(cut, len(ids), version + 1)]
    return RecordedGeneration(
        ids=ids, logprobs=[-0.5 - i for i in range(len(ids))], finish_reason="stop", spans=spans, generate_s=0.1
    )


def test_observations_have_mask_zero_and_no_version() -> None:
    builder = SampleBuilder([1, 2, 3])
    builder.add_generation(generation([10, 11]))
    builder.add_observation([20, 21, 22])
    builder.add_generation(generation([12], version=2))
    sample = builder.build()
    assert sample is not None
    assert sample.prompt_ids.tolist() == [1, 2, 3]
    assert sample.response_ids.tolist() == [10, 11, 20, 21, 22, 12]
    assert sample.response_mask.tolist() == [1, 1, 0, 0, 0, 1]
    assert sample.response_logprobs.tolist() == pytest.approx([-0.5, -1.5, 0, 0, 0, -0.5])
    assert sample.response_versions.tolist() == [1, 1, -1, -1, -1, 2]
    assert builder.ids == [1, 2, 3, 10, 11, 20, 21, 22, 12]


def test_observations_after_the_last_sampled_token_are_not_part_of_the_sample() -> None:
    builder = SampleBuilder([1])
    builder.add_generation(generation([10]))
    builder.add_observation([20, 21])
    sample = builder.build()
    assert sample is not None
    assert sample.response_ids.tolist() == [10]


def test_an_episode_that_sampled_nothing_has_no_sample() -> None:
    builder = SampleBuilder([1])
    builder.add_observation([5])
    assert builder.build() is None


def test_a_policy_change_within_a_turn_is_kept_to_the_token() -> None:
    builder = SampleBuilder([1])
    builder.add_generation(generation([10, 11, 12, 13], version=4, cut=3))
    sample = builder.build()
    assert sample is not None
    assert sample.response_versions.tolist() == [4, 4, 4, 5]


def test_the_outcome_of_a_turn_is_told_with_it() -> None:
    builder = SampleBuilder([1])
    builder.add_generation(generation([10]))
    builder.set_outcome(TurnOutcome(tool_calls=2, is_malformed=True, tool_s=0.25))
    builder.add_observation([9])
    builder.add_generation(generation([11]))
    sample = builder.build()
    assert sample is not None
    assert [(turn.tool_calls, turn.is_malformed, turn.tool_s) for turn in sample.turns] == [
        (2, True, 0.25),
        (0, False, 0),
    ]


def test_a_logprob_a_rounding_error_above_zero_is_zero() -> None:
    builder = SampleBuilder([1])
    recorded = RecordedGeneration(
        ids=[7], logprobs=[1e-7], finish_reason="stop", spans=[VersionSpan(0, 1, 0)], generate_s=0.0
    )
    builder.add_generation(recorded)
    sample = builder.build()
    assert sample is not None
    assert sample.response_logprobs.tolist() == [0.0]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=20))
def test_spans_cover_exactly_the_sampled_tokens_in_order(steps: list[tuple[bool, int, int]]) -> None:
    builder = SampleBuilder([1])
    for is_sampled, length, version in steps:
        if is_sampled:
            builder.add_generation(generation([7] * length, version))
        else:
            builder.add_observation([8] * length)
    sample = builder.build()
    if not any(is_sampled for is_sampled, _, _ in steps):
        assert sample is None
        return
    assert sample is not None
    covered = np.zeros(len(sample.response_ids), dtype=np.uint8)
    for span in sample.version_spans:
        covered[span.start : span.end] += 1
    assert covered.tolist() == sample.response_mask.tolist()
    assert sample.response_mask[-1] == 1
