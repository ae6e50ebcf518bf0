from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory, TrajectoryError
from rollstream.trainers.evaluation import (
    EpisodeFacts,
    compare_evaluations,
    episode_facts,
    prompt_results,
    summarize,
    summarize_environments,
)
from rollstream.trainers.evaluation.summaries import bootstrap_interval, overall, summarize_values

MakeEpisode = Callable[..., EpisodeFacts]
MakeTrajectory = Callable[..., Trajectory]
VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


def test_a_trajectory_becomes_its_figures(trajectory: MakeTrajectory) -> None:
    facts = episode_facts(trajectory(rewards={"format": 0.5}, metrics={"steps": 3.0}), lineage=3, version=7)
    assert facts.values == {"turns": 2, "tokens": 6, "tool_calls": 4, "rewards.format": 0.5, "metrics.steps": 3}
    assert (facts.environment, facts.prompt, facts.reward, facts.is_foreign) == ("gsm8k", "test.jsonl:1", 1.0, False)


@pytest.mark.parametrize("policies", [((3, 7), (3, 8)), ((3, 6), (3, 7)), ((2, 7), (3, 7)), ((4, 7), (4, 7))])
def test_one_token_of_another_policy_makes_an_episode_foreign(
    trajectory: MakeTrajectory, policies: tuple[tuple[int, int], ...]
) -> None:
    assert episode_facts(trajectory(*policies), lineage=3, version=7).is_foreign


def test_a_failed_episode_is_no_reward_of_zero_and_no_short_episode(trajectory: MakeTrajectory) -> None:
    failed = trajectory(
        status="failed", samples=[], reward=None, num_turns=0, error=TrajectoryError(type="EngineError", message="died")
    )
    facts = episode_facts(failed, lineage=3, version=7)
    assert (facts.reward, facts.values, facts.is_foreign) == (None, {}, False)
    assert facts.error == "EngineError: died"


def test_an_own_number_takes_the_place_of_the_reward_and_own_metrics_stand_beside_it(
    trajectory: MakeTrajectory,
) -> None:
    assert episode_facts(trajectory(), lineage=3, version=7, scores=0.25).reward == 0.25
    named = episode_facts(trajectory(), lineage=3, version=7, scores={"length": 6, "reward": 0.5})
    assert (named.reward, named.values["length"]) == (0.5, 6.0)
    assert episode_facts(trajectory(), lineage=3, version=7, scores={"length": 6}).reward == 1.0


@pytest.mark.parametrize("scores", [math.nan, math.inf, {"length": "6"}, {"ok": True}, {"x": None}, "1"])
def test_a_score_that_is_no_finite_number_is_refused_with_the_trajectory_it_belongs_to(
    trajectory: MakeTrajectory, scores: object
) -> None:
    with pytest.raises(SettingsError, match=r"of trajectory '[0-9a-f]{32}'"):
        episode_facts(trajectory(), lineage=3, version=7, scores=scores)  # pyright: ignore[reportArgumentType]  -- what others' functions return


def test_members_that_failed_or_are_foreign_do_not_count_as_unsolved(episode: MakeEpisode) -> None:
    members = [
        episode(0, 0, 1.0),
        episode(0, 1, 0.0),
        episode(0, 2, None, status="failed"),
        episode(0, 3, 0.0, is_foreign=True),
    ]
    (prompt,) = prompt_results(members, ks=(1, 2, 4), pass_threshold=1.0, has_pass_hat=True)
    assert (prompt.episodes, prompt.rewards, prompt.solved) == (3, [1.0, 0.0], 1)
    assert prompt.values["pass@1"] == 0.5
    assert prompt.values["pass@2"] == 1.0
    assert prompt.values["pass^2"] == 0.0
    assert "pass@4" not in prompt.values
    assert prompt.values["failed"] == pytest.approx(1 / 3)


@given(st.data())
@settings(max_examples=50)
def test_the_order_in_which_episodes_arrive_changes_nothing(data: st.DataObject) -> None:
    episodes = [
        EpisodeFacts("e", f"p:{group}", group, member, "completed", float((group + member) % 2), {"turns": member})
        for group in range(3)
        for member in range(4)
    ]
    shuffled = data.draw(st.permutations(episodes))
    expected = prompt_results(episodes, ks=(1, 4), pass_threshold=0.5)
    assert prompt_results(shuffled, ks=(1, 4), pass_threshold=0.5) == expected


@given(VALUES, st.integers(0, 3))
def test_a_summary_is_the_mean_with_the_error_of_independent_prompts(values: list[float], seed: int) -> None:
    summary = summarize_values(values, seed=seed, draws=200)
    assert summary.mean == pytest.approx(fmean(values), abs=1e-9)
    std = stdev(values) if len(values) > 1 else 0.0
    assert summary.std == pytest.approx(std, abs=1e-9)
    assert summary.std_error == pytest.approx(std / math.sqrt(len(values)), abs=1e-9)
    assert min(values) - 1e-9 <= summary.ci_low <= summary.ci_high <= max(values) + 1e-9
    assert summarize_values(values, seed=seed, draws=200) == summary


def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        low, high = bootstrap_interval(list(rng.normal(2.0, 1.0, size=60)), seed=trial, confidence=0.9, draws=400)
        hits += low <= 2.0 <= high
    # Binomial(200, 0.9) has a standard deviation of 4.2; five of them either way.
    assert 159 <= hits <= 200
    assert hits < 200


def test_samples_of_one_prompt_do_not_make_the_mean_more_certain(episode: MakeEpisode) -> None:
    few = [episode(group, member, float(group % 2)) for group in range(10) for member in range(2)]
    many = [episode(group, member, float(group % 2)) for group in range(10) for member in range(64)]
    errors = [summarize(prompt_results(e, ks=(1,), pass_threshold=1.0))["reward"].std_error for e in (few, many)]
    assert errors[0] == pytest.approx(errors[1])
    assert errors[0] == pytest.approx(math.sqrt(10 / 36) / math.sqrt(10))


def test_environments_are_summed_up_apart_and_weigh_the_same_together(episode: MakeEpisode) -> None:
    episodes = [
        *(episode(group, 0, 1.0, environment="math", values={"depth": 1.0}) for group in range(9)),
        episode(0, 0, 0.0, environment="code"),
    ]
    environments = summarize_environments(prompt_results(episodes, ks=(1,), pass_threshold=1.0))
    assert {name: metrics["pass@1"].mean for name, metrics in environments.items()} == {"math": 1.0, "code": 0.0}
    together = overall(environments)
    assert (together["pass@1"].mean, together["pass@1"].prompts) == (0.5, 10)
    assert together["pass@1"].std == pytest.approx(math.sqrt(0.5))
    assert "depth" not in together


def test_pairs_show_a_small_gain_that_independent_means_would_hide(episode: MakeEpisode) -> None:
    before = [episode(group, 0, float(group)) for group in range(20)]
    after = [episode(group, 0, group + 0.5 + 0.01 * (group % 3)) for group in range(20)]
    old, new = (prompt_results(e, ks=(1,), pass_threshold=5.0) for e in (before, after))
    paired = compare_evaluations(new, old, has_same_data=True)["reward"]
    assert (paired.is_paired, paired.prompts, paired.is_clear) == (True, 20, True)
    assert paired.difference == pytest.approx(0.5 + 0.01 * fmean(g % 3 for g in range(20)))
    apart = compare_evaluations(new, old, has_same_data=False)["reward"]
    assert (apart.is_paired, apart.is_clear) == (False, False)
    assert apart.difference == pytest.approx(paired.difference)


def test_only_prompts_that_both_have_are_compared(episode: MakeEpisode) -> None:
    old = prompt_results([episode(g, 0, 0.0) for g in range(4)], ks=(1,), pass_threshold=1.0)
    new = prompt_results([episode(g, 0, 1.0, values={"own": 1.0}) for g in range(2, 8)], ks=(1,), pass_threshold=1.0)
    differences = compare_evaluations(new, old, has_same_data=True)
    assert (differences["pass@1"].prompts, differences["pass@1"].difference) == (2, 1.0)
    assert "own" not in differences


@given(VALUES)
def test_nothing_has_changed_against_itself(values: list[float]) -> None:
    results = prompt_results(
        [EpisodeFacts("e", f"p:{i}", i, 0, "completed", v) for i, v in enumerate(values)], ks=(1,), pass_threshold=1.0
    )
    for difference in compare_evaluations(results, results, has_same_data=True, draws=50).values():
        assert (difference.difference, difference.std_error, difference.is_clear) == (0.0, 0.0, False)
