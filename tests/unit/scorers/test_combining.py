from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rollstream.schemas.codec import decode, encode
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.scorers.combining import Combination, ScorerFailure, combination, scored
from rollstream.scorers.scoring import Score
from rollstream.scorers.settings import ScorerSettings

Make = Callable[..., Trajectory]
FAILED = ScorerFailure("TransientError", "the judge is down")
numbers = st.floats(-1e6, 1e6)


def test_a_score_replaces_the_reward_which_is_kept_under_a_name(make: Make) -> None:
    done = scored(
        make(rewards={"numeric": 1.0}), {"judge": Score(0.25)}, combination("replace", {}, ["judge"], "outcome")
    )

    assert done.reward == 0.25
    assert done.rewards == {"numeric": 1.0, "outcome": 1.0, "judge": 0.25}
    assert done.metrics["scorer_failures"] == 0.0


@given(outcome=numbers, a=numbers, b=numbers, weight=numbers)
def test_add_is_the_outcome_and_every_weighted_score(
    make: Make, outcome: float, a: float, b: float, weight: float
) -> None:
    how = combination("add", {"b": weight}, ["a", "b"], "outcome")
    done = scored(make(reward=outcome), {"a": Score(a), "b": Score(b)}, how)

    assert done.reward is not None
    assert math.isclose(done.reward, outcome + a + weight * b, rel_tol=1e-9, abs_tol=1e-6)


def test_any_named_reward_may_be_weighted(make: Make) -> None:
    how = combination("weighted", {"judge/style": 2.0, "numeric": 0.5}, ["judge"], "outcome")
    done = scored(make(rewards={"numeric": 1.0}), {"judge": Score(9.0, {"style": 0.25})}, how)

    assert done.reward == 2.0 * 0.25 + 0.5 * 1.0


@pytest.mark.parametrize("rule", ["replace", "add"])
def test_a_failed_scorer_makes_the_reward_unknown_and_never_zero(make: Make, rule: str) -> None:
    how = combination("add" if rule == "add" else "replace", {}, ["judge", "style"], "outcome")
    done = scored(make(), {"judge": FAILED, "style": Score(1.0)}, how)

    assert done.reward is None
    assert done.metrics["scorer_failures"] == 1.0
    assert done.extra["scorer_errors"] == {"judge": "TransientError: the judge is down"}
    assert done.rewards == {"outcome": 1.0, "style": 1.0}


def test_a_failed_scorer_that_counts_nothing_costs_nothing(make: Make) -> None:
    how = combination("replace", {"judge": 0.0}, ["judge", "style"], "outcome")
    assert scored(make(), {"judge": FAILED, "style": Score(0.5)}, how).reward == 0.5


def test_without_an_outcome_add_knows_no_sum(make: Make) -> None:
    done = scored(make(reward=None), {"judge": Score(1.0)}, combination("add", {}, ["judge"], "outcome"))
    assert done.reward is None
    assert "outcome" not in done.rewards


def test_parts_of_the_outcome_that_are_in_the_way_move(make: Make) -> None:
    done = scored(make(rewards={"judge": 7.0}), {"judge": Score(0.5)}, combination("replace", {}, ["judge"], "outcome"))
    assert done.rewards == {"outcome/judge": 7.0, "outcome": 1.0, "judge": 0.5}


def test_nothing_but_scores_changes_and_it_travels(make: Make) -> None:
    before = make(extra={"row": 3})
    score = Score(0.5, metrics={"votes": 3.0}, extra={"said": "fine"})
    after = scored(before, {"judge": score}, combination("replace", {}, ["judge"], "outcome"))

    record = encode(after)
    assert encode(decode(record.value, record.headers, Trajectory)) == record
    assert after.metrics == {"judge/votes": 3.0, "scorer_failures": 0.0}
    assert after.extra == {"row": 3, "scorers": {"judge": {"said": "fine"}}}
    restored = msgspec.structs.replace(after, reward=1.0, rewards={}, metrics={}, extra={"row": 3})
    assert encode(restored) == encode(before)


def test_names_that_clash_and_weights_of_nothing_are_refused() -> None:
    with pytest.raises(SettingsError, match="outcome_name = 'judge'"):
        combination("replace", {}, ["judge"], "judge")
    with pytest.raises(SettingsError, match=r"needs scorer\.weights"):
        combination("weighted", {}, ["judge"], "outcome")
    with pytest.raises(SettingsError, match=r"names \['jugde'\]"):
        combination("add", {"jugde": 1.0}, ["judge"], "outcome")
    assert combination("add", {"outcome": 0.5}, ["a"], "outcome") == Combination({"a": 1.0, "outcome": 0.5}, "outcome")


@pytest.mark.parametrize(
    "values",
    [
        {"weights": {"judge": float("nan")}},
        {"scorers": {"judge": {"kind": "judge", "highest": float("inf")}}},
    ],
)
def test_weights_and_scales_that_would_make_every_reward_unknown_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        ScorerSettings.model_validate(values)
