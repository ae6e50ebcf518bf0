from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rollstream.schemas.errors import InvalidMessageError, SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers import ADVANTAGES, Estimator, TrainingBatch, TrajectoryGroup, batch_advantages
from rollstream.trainers.advantages import group_advantages

Make = Callable[..., Trajectory]

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine fails no property."""

PEERS = Path(__file__).with_name("peer_advantages.py")
OF_ONE_GROUP = sorted(name for name, estimator in ADVANTAGES.items() if not estimator.needs_batch)

values = st.integers(-8, 8).map(lambda eighths: eighths / 8)
maybe_scored = st.one_of(values, st.just(float("nan")))
groups = st.lists(values, min_size=2, max_size=9).map(np.array)
batches = st.lists(st.lists(maybe_scored, min_size=0, max_size=6).map(np.array), max_size=6)


@pytest.mark.parametrize("name", OF_ONE_GROUP)
@unhurried
@given(rewards=groups)
def test_they_have_the_mean_zero_and_rank_members_as_rewards_do(name: str, rewards: NDArray[np.float64]) -> None:
    advantages = group_advantages(rewards, name)
    assert advantages.dtype == np.float32
    assert abs(advantages.mean()) < 1e-5
    better = np.subtract.outer(rewards, rewards) > 0
    assert (np.subtract.outer(advantages, advantages)[better] > 0).all()


@pytest.mark.parametrize("name", OF_ONE_GROUP)
@unhurried
@given(rewards=groups, shift=st.integers(-1000, 1000))
def test_a_constant_added_to_all_rewards_changes_nothing(name: str, rewards: NDArray[np.float64], shift: int) -> None:
    np.testing.assert_allclose(group_advantages(rewards + shift, name), group_advantages(rewards, name), atol=1e-6)


@unhurried
@given(rewards=groups, factor=st.sampled_from([0.25, 2.0, 64.0]))
def test_a_scale_cancels_where_it_is_divided_by_the_deviation_and_passes_elsewhere(
    rewards: NDArray[np.float64], factor: float
) -> None:
    for ddof in (0, 1):
        normalised = Estimator(scale="group", ddof=ddof, epsilon=0.0)
        scaled = group_advantages(rewards * factor, normalised)
        np.testing.assert_allclose(scaled, group_advantages(rewards, normalised), atol=1e-6)
    for name in ("dr_grpo", "rloo"):
        scaled = group_advantages(rewards * factor, name)
        np.testing.assert_allclose(scaled, group_advantages(rewards, name) * factor, rtol=1e-6)


@unhurried
@given(rewards=groups)
def test_leave_one_out_takes_off_the_mean_of_the_others(rewards: NDArray[np.float64]) -> None:
    others = [np.delete(rewards, place).mean() for place in range(len(rewards))]
    np.testing.assert_allclose(group_advantages(rewards, "rloo"), rewards - others, atol=1e-6)


def test_two_names_of_one_estimator_are_one() -> None:
    assert ADVANTAGES["leave_one_out"] is ADVANTAGES["rloo"]


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@unhurried
@given(batch=batches)
def test_nothing_is_ever_nan_and_who_cannot_be_compared_gets_zero(name: str, batch: list[NDArray[np.float64]]) -> None:
    advantages = batch_advantages(batch, name)
    assert [len(a) for a in advantages] == [len(r) for r in batch]
    for rewards, result in zip(batch, advantages, strict=True):
        assert np.isfinite(result).all()
        scored = rewards[~np.isnan(rewards)]
        assert not result[np.isnan(rewards)].any()
        if len(scored) < 2 or (len(set(scored)) == 1 and name != "reinforce_plus_plus_baseline"):
            assert not result.any()


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@unhurried
@given(batch=batches, place=st.integers(0, 5))
def test_a_member_without_a_reward_might_as_well_be_away(
    name: str, batch: list[NDArray[np.float64]], place: int
) -> None:
    without = [rewards[~np.isnan(rewards)] for rewards in batch]
    with_it = batch_advantages(batch, name)
    for rewards, result, expected in zip(batch, with_it, batch_advantages(without, name), strict=True):
        np.testing.assert_allclose(result[~np.isnan(rewards)], expected, atol=1e-6)


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_equal_rewards_that_have_no_exact_sum_give_exactly_zero(name: str) -> None:
    assert [a.tolist() for a in batch_advantages([[0.1] * 7, [0.7] * 3], name)] == [[0.0] * 7, [0.0] * 3]
    no_epsilon = replace(ADVANTAGES[name], epsilon=0.0)
    assert batch_advantages([[0.1] * 7], no_epsilon)[0].tolist() == [0.0] * 7


def test_whitened_advantages_of_a_batch_have_mean_zero_and_variance_one_over_its_tokens(make_trajectory: Make) -> None:
    groups = tuple(
        TrajectoryGroup("run", f"g{index}", index, 2, tuple(
            make_trajectory(index, member, reward=float(index * member + member), tokens=1 + 5 * index + member)
            for member in range(2)
        ))
        for index in range(3)
    )  # fmt: skip
    batch = TrainingBatch(0, 0, 0, groups)
    assert groups[1].sampled_tokens.tolist() == [6, 7]
    advantages = batch_advantages(batch, "reinforce_plus_plus_baseline")
    per_token = np.repeat(np.concatenate(advantages), [1, 2, 6, 7, 11, 12])
    assert abs(per_token.mean()) < 1e-6
    assert per_token.var(ddof=1) == pytest.approx(1.0, abs=1e-6)


def test_samples_for_people_only_weigh_nothing(make_trajectory: Make) -> None:
    mixed_up = make_trajectory(0, 0, is_trainable=False)
    assert TrajectoryGroup("run", "g", 0, 1, (mixed_up,)).sampled_tokens.tolist() == [0]


def test_an_estimator_over_a_batch_is_not_asked_about_one_group() -> None:
    with pytest.raises(SettingsError, match="batch_advantages"):
        group_advantages(np.array([0.0, 1.0]), "reinforce_plus_plus_baseline")


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"'ppo'.*dr_grpo"):
        group_advantages([0.0, 1.0], "ppo")


@pytest.mark.parametrize("field", [{"scale": "std"}, {"baseline": "max"}, {"ddof": 2}, {"epsilon": -1e-6}])
def test_an_estimator_that_cannot_be_is_refused_when_it_is_made(field: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(field))):
        Estimator(**field)


def test_an_infinite_reward_is_an_error_and_not_a_nan() -> None:
    with pytest.raises(InvalidMessageError, match="infinite reward"):
        batch_advantages([[0.0, float("inf")]])


def test_a_table_of_rewards_is_not_a_group() -> None:
    with pytest.raises(SettingsError, match=r"\(2, 2\)"):
        group_advantages(np.zeros((2, 2)))


def test_a_group_brings_its_own_rewards(make_trajectory: Make) -> None:
    group = TrajectoryGroup("run", "g", 0, 2, (make_trajectory(0, 0, reward=0.0), make_trajectory(0, 1, reward=3.0)))
    assert group_advantages(group, "dr_grpo").tolist() == [-1.5, 1.5]


@pytest.mark.timeout(100)
def test_they_are_the_numbers_that_verl_and_trl_compute() -> None:
    random = np.random.default_rng(5)
    rewards = [random.random(size).tolist() for size in (2, 3, 8, 5)] + [[0.25, 0.25]]
    tokens = [random.integers(1, 9, len(r)).tolist() for r in rewards]
    job = json.dumps({"rewards": rewards, "tokens": tokens})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(PEERS)],
        input=job, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    peers: dict[str, list[list[float]]] = json.loads(done.stdout.splitlines()[-1])
    assert set(peers) == {"grpo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline", "grpo_trl_async"}

    groups = [_Group(r, t) for r, t in zip(rewards, tokens, strict=True)]
    for name, expected in peers.items():
        for ours, theirs in zip(batch_advantages(_Batch(groups), name), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5, err_msg=name)


class _Group:
    def __init__(self, rewards: list[float], tokens: list[int]) -> None:
        self.rewards = np.array(rewards, dtype=np.float32)
        self.sampled_tokens = np.array(tokens, dtype=np.int64)


class _Batch:
    def __init__(self, groups: list[_Group]) -> None:
        self.groups = groups
