from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rollstream.schemas.errors import DataError, SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.scorers.functions import FunctionScorer, load_function
from rollstream.scorers.prompt_templates import check_template, filled, filled_json
from rollstream.scorers.scoring import GroupScoreRequest, Score, ScoreRequest, as_score, as_scores, scorer
from rollstream.scorers.transcripts import Transcript

Make = Callable[..., Trajectory]
TEXT = Transcript(prompt="6*7?", response="<think>{prompt}</think>42", final_answer="42")


@pytest.mark.parametrize(
    ("returned", "score"),
    [
        (1, Score(1.0)),
        (True, Score(1.0)),
        (np.float32(0.5), Score(0.5)),
        ({"reward": 2, "style": 1}, Score(2.0, {"style": 1.0})),
        (Score(1.0, metrics={"m": 2}, extra={"a": [1]}), Score(1.0, metrics={"m": 2.0}, extra={"a": [1]})),
    ],
)
def test_numbers_mappings_and_scores_are_scores(returned: object, score: Score) -> None:
    assert as_score(returned) == score


@pytest.mark.parametrize(
    "returned",
    [None, "1", float("nan"), {"style": 1.0}, {"reward": float("inf")}, Score(1.0, metrics={"m": float("nan")})],
)
def test_what_is_no_score_is_never_taken_for_one(returned: object) -> None:
    with pytest.raises(DataError, match="a scorer returned"):
        as_score(returned)


def test_an_extra_that_cannot_travel_is_refused() -> None:
    with pytest.raises(DataError, match="plain values only"):
        as_score(Score(1.0, extra={"it": object()}))


def test_a_group_scorer_returns_one_score_per_member() -> None:
    assert as_scores([1, {"reward": 2}], 2) == [Score(1.0), Score(2.0)]
    with pytest.raises(DataError, match="1 scores for 2 members"):
        as_scores([1], 2)
    with pytest.raises(DataError, match="a sequence of scores is needed"):
        as_scores(1.0, 1)


async def test_functions_may_be_sync_or_async_and_for_groups(make: Make) -> None:
    async def slowly(request: ScoreRequest) -> float:
        return float(request.trajectory.member_index)

    def three(request: ScoreRequest) -> int:
        return 3

    @scorer(group=True)
    def rank(request: GroupScoreRequest) -> list[float]:
        return [float(len(request.members)) for _ in request.members]

    both = GroupScoreRequest((ScoreRequest(make(0, 1)), ScoreRequest(make(0, 2))))
    assert await FunctionScorer(slowly).score(both) == [Score(1.0), Score(2.0)]
    assert await FunctionScorer(three).score(both) == [Score(3.0), Score(3.0)]
    assert FunctionScorer(rank).is_for_groups
    assert await FunctionScorer(rank).score(both) == [Score(2.0), Score(2.0)]


@pytest.mark.parametrize("name", ["no_colon", ":f", "math:", "no_such_module:f", "math:pi", "math:no_such"])
def test_a_function_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=repr(name)):
        load_function(name)


def test_asking_for_text_or_a_judge_that_is_not_set_says_what_to_set(make: Make) -> None:
    request = ScoreRequest(make())
    with pytest.raises(SettingsError, match=r"set scorer\.tokenizer"):
        _ = request.transcript
    with pytest.raises(SettingsError, match=r"scorer\.judges\.default\.url"):
        _ = request.judge


def test_places_are_filled_once_and_other_braces_are_text(make: Make) -> None:
    request = ScoreRequest(make(extra={"reference": "42", "n": [1, 2]}, data_source="maths"), (TEXT,))
    template = '{prompt}|{response}|{final_answer}|{extra.reference}|{extra.n}|{data_source}|{"score": 1}|{answer}'
    assert filled(template, request) == ('6*7?|<think>{prompt}</think>42|42|42|[1,2]|maths|{"score": 1}|{answer}')
    body: dict[str, Any] = {"input": ["{prompt}", 1], "model": "rm", "deep": {"x": "{final_answer}"}}
    assert filled_json(body, request) == {"input": ["6*7?", 1], "model": "rm", "deep": {"x": "42"}}


def test_a_template_about_nothing_and_a_field_that_is_missing_are_refused(make: Make) -> None:
    with pytest.raises(SettingsError, match="the body has neither"):
        check_template({"input": "{prompt}"}, "the body")
    with pytest.raises(DataError, match="no 'reference', only"):
        filled("{extra.reference}", ScoreRequest(make(), (TEXT,)))


async def test_calls_that_never_return_leave_the_other_threads_alone(make: Make) -> None:
    release = threading.Event()

    def hang(request: ScoreRequest) -> float:
        return float(release.wait())

    hanging = FunctionScorer(hang)
    request = GroupScoreRequest((ScoreRequest(make()),))
    calls = [asyncio.create_task(hanging.score(request)) for _ in range(40)]
    try:
        await asyncio.wait(calls, timeout=0.05)
        async with asyncio.timeout(30):
            assert await asyncio.to_thread(release.is_set) is False
    finally:
        release.set()
    assert await asyncio.gather(*calls) == [[Score(1.0)]] * 40
