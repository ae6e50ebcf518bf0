from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Sample, Trajectory, VersionSpan
from rollstream.trainers.adapters.slime import generate_rollout, post_process_rewards
from rollstream.trainers.adapters.slime_samples import evaluation_dicts, sample_dicts, trained_rewards
from rollstream.trainers.advantages import group_advantages
from rollstream.trainers.batches import TrainingBatch, TrajectoryGroup

Make = Callable[..., Trajectory]
needs_slime = pytest.mark.skipif(find_spec("slime") is None, reason="slime is on no package registry, and needs SGLang")
TWO_TURNS = Sample(
    prompt_ids=np.array([1, 2], dtype=np.int32),
    response_ids=np.array([10, 20, 12], dtype=np.int32),
    response_mask=np.array([1, 0, 1], dtype=np.uint8),
    response_logprobs=np.array([-0.5, 0.0, -0.25], dtype=np.float32),
    version_spans=[VersionSpan(0, 1, 4), VersionSpan(2, 3, 5)],
    turns=[],
)


@dataclass
class Rewarded:
    """As much of slime's sample as the reward hook reads."""

    group_index: int | None
    rollout_id: int | None
    reward: Any
    remove_sample: bool = False


def group_of(*trajectories: Trajectory, size: int | None = None) -> TrajectoryGroup:
    first = trajectories[0]
    return TrajectoryGroup(first.run_id, first.group_id, first.group_index, size or len(trajectories), trajectories)


def batch_of(*groups: TrajectoryGroup) -> TrainingBatch:
    return TrainingBatch(0, 1, 0, groups)


def test_a_sample_has_all_tokens_and_masks_of_the_response_alone(make_trajectory: Make) -> None:
    trajectory = msgspec.structs.replace(
        make_trajectory(0, 0, reward=0.5), samples=[TWO_TURNS], status="truncated", data_source="maths"
    )
    ((((sample,),),)) = sample_dicts(batch_of(group_of(trajectory)), groups=1, members=1)
    assert sample["tokens"] == [1, 2, 10, 20, 12]
    assert sample["response_length"] == 3
    assert sample["loss_mask"] == [1, 0, 1]
    assert sample["rollout_log_probs"] == [-0.5, 0.0, -0.25]
    assert (sample["reward"], sample["status"], sample["weight_versions"]) == (0.5, "truncated", ["4", "5"])
    assert sample["metadata"]["source_name"] == "maths"


def test_samples_of_one_trajectory_are_siblings_and_unusable_ones_stay_out(make_trajectory: Make) -> None:
    unusable = msgspec.structs.replace(TWO_TURNS, is_trainable=False)
    first = msgspec.structs.replace(make_trajectory(0, 0), samples=[TWO_TURNS, unusable, TWO_TURNS])
    nested = sample_dicts(batch_of(group_of(first, make_trajectory(0, 1))), groups=1, members=2)
    assert [[(s["group_index"], s["rollout_id"]) for s in rollout] for rollout in nested[0]] == [
        [(0, 0), (0, 0)],
        [(0, 1)],
    ]


def test_missing_members_and_groups_are_filled_up_without_loss(make_trajectory: Make) -> None:
    nested = sample_dicts(batch_of(group_of(make_trajectory(0, 0), size=2)), groups=2, members=2)
    assert [len(group) for group in nested] == [2, 2]
    flat = [sample for group in nested for rollout in group for sample in rollout]
    assert [s["rollout_id"] for s in flat] == [0, 1, 2, 3]
    assert [s["remove_sample"] for s in flat] == [False, True, True, True]
    assert all(sum(s["loss_mask"]) == 0 and len(s["tokens"]) == 2 for s in flat[1:])


def test_a_group_that_is_larger_than_slime_counts_on_names_the_option(make_trajectory: Make) -> None:
    with pytest.raises(SettingsError, match="--n-samples-per-prompt 4"):
        sample_dicts(batch_of(group_of(make_trajectory(0, 0), size=4)), groups=1, members=2)


@given(
    groups=st.lists(
        st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 3)), min_size=2, max_size=4),
        min_size=1,
        max_size=4,
    ),
    estimator=st.sampled_from(["grpo", "dr_grpo", "rloo"]),
)
def test_rewards_are_compared_within_their_prompt_however_many_samples_a_rollout_has(
    groups: list[list[tuple[float, int]]], estimator: str
) -> None:
    samples: list[Rewarded] = []
    expected: list[float] = []
    rollout = 0
    for place, members in enumerate(groups):
        advantages = group_advantages([reward for reward, _ in members], estimator)
        for (reward, count), advantage in zip(members, advantages, strict=True):
            samples += [Rewarded(place, rollout, reward)] * count
            expected += [float(advantage)] * count
            rollout += 1
        samples.append(Rewarded(place, rollout, 0.0, remove_sample=True))
        expected.append(0.0)
        rollout += 1
    raw, trained = trained_rewards(samples, estimator)
    assert trained == expected
    assert [r for r, s in zip(raw, samples, strict=True) if not s.remove_sample] == [
        s.reward for s in samples if not s.remove_sample
    ]


def test_fillers_leave_average_rewards_as_they_are() -> None:
    filled: Sequence[Rewarded] = [
        Rewarded(0, 0, 1.0),
        Rewarded(0, 1, 0.5),
        Rewarded(0, 2, 0.0, remove_sample=True),
        Rewarded(1, 3, 0.0, remove_sample=True),
    ]
    assert trained_rewards(filled, None) == ([1.0, 0.5, 0.75, 0.75], [1.0, 0.5, 0.0, 0.0])


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, [0.70710, -0.70710]),
        ({"grpo_std_normalization": False}, [0.5, -0.5]),
        ({"advantage_estimator": "reinforce_plus_plus_baseline"}, [0.5, -0.5]),
        ({"advantage_estimator": "ppo"}, [1.0, 0.0]),
        ({"rewards_normalization": False}, [1.0, 0.0]),
        ({"rollstream": {"bootstrap": "k:1", "estimator": "rloo"}}, [1.0, -1.0]),
    ],
)
def test_slimes_own_options_choose_the_estimator_unless_one_is_named(
    options: dict[str, Any], trained: list[float]
) -> None:
    args = {
        "advantage_estimator": "grpo",
        "rewards_normalization": True,
        "grpo_std_normalization": True,
        "rollstream": {"bootstrap": "k:1"},
    }
    raw, normalised = post_process_rewards(Namespace(**{**args, **options}), [Rewarded(0, 0, 1.0), Rewarded(0, 1, 0.0)])
    assert raw == [1.0, 0.0]
    assert normalised == pytest.approx(trained, abs=1e-4)


def test_wrong_use_says_what_to_pass() -> None:
    with pytest.raises(SettingsError, match="no mapping 'rollstream'"):
        post_process_rewards(Namespace(), [])
    with pytest.raises(SettingsError, match="unknown field `bootstraps`"):
        post_process_rewards(Namespace(rollstream={"bootstrap": "k:1", "bootstraps": 1}), [])
    with pytest.raises(SettingsError, match="--data-source-path"):
        generate_rollout(Namespace(), 0, object())
    with pytest.raises(SettingsError, match=r"samples of rollstream\.trainers\.adapters\.slime\.generate_rollout only"):
        trained_rewards([Rewarded(None, None, 1.0)], "grpo")


def test_evaluations_are_sorted_by_source(make_trajectory: Make) -> None:
    maths = msgspec.structs.replace(make_trajectory(0, 0, reward=1.0), data_source="maths")
    found = evaluation_dicts([group_of(maths, make_trajectory(0, 1, reward=0.0)), group_of(make_trajectory(1, 0))])
    assert {source: [s["reward"] for s in samples] for source, samples in found.items()} == {
        "maths": [1.0],
        "rollstream": [0.0, 1.0],
    }


@needs_slime
def test_slimes_own_classes_take_the_samples(make_trajectory: Make) -> None:
    sample_type: Any = import_module("slime.utils.types").Sample
    schedule: Any = import_module("slime.utils.dp_schedule").build_dp_schedule
    first = msgspec.structs.replace(make_trajectory(0, 0), samples=[TWO_TURNS, TWO_TURNS])
    nested = sample_dicts(batch_of(group_of(first, make_trajectory(0, 1), size=3)), groups=2, members=3)
    samples = [[[sample_type.from_dict(s) for s in rollout] for rollout in group] for group in nested]
    import_module("slime.observability.rollout_data_utils").validate_rollout_id_annotated(samples)
    flat = [sample for group in samples for rollout in group for sample in rollout]
    for sample in flat:
        assert sample.status in (sample_type.Status.COMPLETED, sample_type.Status.ABORTED)
        assert len(sample.loss_mask) == len(sample.rollout_log_probs) == sample.response_length
    args = Namespace(use_dynamic_batch_size=True, max_tokens_per_gpu=64, balance_by_flops=False, balance_data=False)
    parallel = {"dp_size": 1, "cp_size": 1, "vpp_size": 1, "microbatch_group_size_per_vp_stage": 1}
    partitions, *_ = schedule(
        args,
        parallel,
        [len(s.tokens) for s in flat],
        global_batch_size=6,
        rollout_indices=[s.rollout_id for s in flat],
    )
    assert sorted(partitions[0]) == list(range(len(flat))), "no rollout is dropped as one too few"
