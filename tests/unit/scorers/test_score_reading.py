from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.errors import DataError, SettingsError
from rollstream.scorers.score_reading import ScoreScale, compiled, score_by_key, score_by_pattern, value_at
from rollstream.scorers.settings import DEFAULT_PATTERN

PATTERN = compiled(DEFAULT_PATTERN)


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("Score: 7", 7.0),
        ("**Score:** 7.5/10", 7.5),
        ("A score of 3 would be unfair.\nScore: 8", 8.0),
        ("score = -2", -2.0),
        ("SCORE:10.", 10.0),
    ],
)
def test_the_last_number_a_judge_gives_is_its_score(said: str, score: float) -> None:
    assert score_by_pattern(said, PATTERN) == score


@pytest.mark.parametrize("said", ["", "very good", "Score: high", "7"])
def test_an_answer_without_a_score_is_malformed_and_no_zero(said: str) -> None:
    with pytest.raises(DataError, match="holds no score"):
        score_by_pattern(said, PATTERN)


@given(value=st.floats(-1e9, 1e9), before=st.text(max_size=40), after=st.text(alphabet="abc .}\n", max_size=40))
def test_a_number_in_json_is_found_wherever_it_stands(value: float, before: str, after: str) -> None:
    said = before + json.dumps({"why": "a {brace}", "score": value, "parts": {"x": [1]}}) + after
    assert score_by_key(said, "score") == value


@pytest.mark.parametrize("said", ["", "{", '{"score": "high"}', '{"score": true}', '{"score": 1e999}', "{" * 5000])
def test_json_without_a_finite_number_is_malformed(said: str) -> None:
    with pytest.raises(DataError):
        score_by_key(said, "score")


def test_what_lies_outside_the_scale_is_not_believed() -> None:
    scale = ScoreScale(1.0, 5.0)
    assert [scale.reward(value, "") for value in (1.0, 3.0, 5.0)] == [0.0, 0.5, 1.0]
    for outside in (0.9, 5.1, float("nan"), float("inf")):
        with pytest.raises(DataError, match="not within 1"):
            scale.reward(outside, "Score: …")


def test_a_path_leads_through_objects_and_lists() -> None:
    answer = {"data": [{"probs": [0.1, 0.9], "label": "no number"}]}
    assert value_at(answer, "data.0.probs.1") == 0.9
    for wrong in ("data.1.probs", "data.0.prob", "data.x", "data.0.label", "data"):
        with pytest.raises(DataError):
            value_at(answer, wrong)


def test_a_pattern_must_say_where_the_number_is() -> None:
    with pytest.raises(SettingsError, match="has no group"):
        compiled("score")
    with pytest.raises(SettingsError, match="is no regular expression"):
        compiled("(")
