from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from rollstream.schemas.errors import DataError, SettingsError, TransientError
from rollstream.schemas.trajectories import Trajectory
from rollstream.scorers.endpoints import MAX_RETRY_AFTER_S, key_of, seconds
from rollstream.scorers.judges import Judge, JudgeScorer
from rollstream.scorers.scoring import GroupScoreRequest, Score, ScoreRequest
from rollstream.scorers.settings import EndpointSettings, JudgeScorerSettings, JudgeSettings
from rollstream.scorers.transcripts import Transcript

Make = Callable[..., Trajectory]
TEXT = Transcript(prompt="6*7?", response="42", final_answer="42")


class Service:
    """Answers with these, one after another, and keeps what it was asked."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.bodies: list[Mapping[str, Any]] = []

    async def post(self, body: Mapping[str, Any]) -> Any:
        self.bodies.append(body)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def said(text: str | None, finish_reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}]}


def judge(service: Service, **settings: Any) -> Judge:
    return Judge(service, JudgeSettings(url="http://j/v1", model="m", **settings))


async def test_a_question_is_a_chat_with_the_fields_of_the_settings_and_of_the_call() -> None:
    service = Service(said("yes"))
    assert await judge(service, extra_body={"seed": 1}, max_tokens=9).ask("q", system="s", temperature=0.5) == "yes"
    assert service.bodies == [
        {
            "model": "m",
            "temperature": 0.5,
            "max_tokens": 9,
            "seed": 1,
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
        }
    ]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (said("Score: 10", "length"), "cut at max_tokens = 1024"),
        (said(None), "is empty"),
        (said(""), "is empty"),
        ({"error": "x"}, "no chat completion"),
        ("text", "no chat completion"),
    ],
)
async def test_an_answer_that_is_cut_empty_or_none_is_malformed(answer: object, error: str) -> None:
    with pytest.raises(DataError, match=error):
        await judge(Service(answer)).ask("q")


async def test_votes_that_can_be_read_are_averaged_and_one_that_cannot_be_had_fails_all(make: Make) -> None:
    request = GroupScoreRequest((ScoreRequest(make(), (TEXT,)),))
    settings = JudgeScorerSettings(votes=3, score_key="score", lowest=-1, highest=1)

    good = Service(said('{"score": 1}'), said("no"), said('{"score": 0}'))
    assert await JudgeScorer(judge(good), settings).score(request) == [Score(0.75, metrics={"votes": 2.0})]
    assert "6*7?" in good.bodies[0]["messages"][0]["content"]

    with pytest.raises(DataError, match="no JSON object with 'score'"):
        await JudgeScorer(judge(Service(said("a"), said("b"), said("c"))), settings).score(request)
    with pytest.raises(ExceptionGroup) as down:
        await JudgeScorer(judge(Service(said("a"), TransientError("down"), said("c"))), settings).score(request)
    assert down.group_contains(TransientError)


def test_a_scale_needs_two_ends() -> None:
    with pytest.raises(ValueError, match=r"lowest = 1\.0 is not below highest = 1\.0"):
        JudgeScorerSettings(lowest=1, highest=1)


def test_a_key_comes_from_the_environment_by_name_and_is_never_shown() -> None:
    settings = EndpointSettings(url="http://j/v1", key_variable="KEY")
    assert key_of(settings, {"KEY": "sk"}) == "sk"
    assert key_of(EndpointSettings(url="http://j/v1"), {}) == ""
    with pytest.raises(SettingsError, match="'KEY': that environment variable is not set"):
        key_of(settings, {"KEY": ""})
    assert "sk" not in msgspec.json.encode(settings.model_dump()).decode()


def test_a_service_says_when_to_come_back_within_bounds() -> None:
    asked = ["3", "0.5", "-1", "86400", None, "Wed, 21 Oct 2026 07:28:00 GMT"]
    assert [seconds(each) for each in asked] == [3.0, 0.5, 0.0, MAX_RETRY_AFTER_S, None, None]
