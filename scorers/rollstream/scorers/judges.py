"""Judge models: one that scorer functions can ask, and the scorer that asks it for a number."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from rollstream.schemas.errors import DataError
from rollstream.scorers.prompt_templates import check_template, filled
from rollstream.scorers.score_reading import ScoreScale, compiled, score_by_key, score_by_pattern
from rollstream.scorers.scoring import GroupScoreRequest, Score, ScoreRequest
from rollstream.scorers.settings import JudgeScorerSettings, JudgeSettings

CHAT = "/chat/completions"


class JsonService(Protocol):
    """See `endpoints.Endpoint`."""

    async def post(self, body: Mapping[str, Any]) -> Any:
        """The decoded answer."""
        ...


class _Answer(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Answer
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class Judge:
    """A model behind an OpenAI-compatible API. Safe for many tasks at once; requests are bounded by the service."""

    def __init__(self, service: JsonService, settings: JudgeSettings) -> None:
        self._service = service
        self._settings = settings

    async def ask(self, question: str, *, system: str = "", **fields: Any) -> str:
        """What the judge answers.

        Args:
            question: the one message of the user.
            system: the message before it; empty: none.
            fields: of the request, instead of those in the settings, e.g. ``temperature=1.0``.

        Raises:
            TransientError: it cannot be had now.
            DataError: it refuses the question, or its answer is empty, cut or malformed.
            SettingsError: it is not there, or refuses the key.
        """
        messages = [{"role": "system", "content": system}] if system else []
        body = {
            "model": self._settings.model,
            "temperature": self._settings.temperature,
            "max_tokens": self._settings.max_tokens,
            **self._settings.extra_body,
            **fields,
            "messages": [*messages, {"role": "user", "content": question}],
        }
        answer = await self._service.post(body)
        try:
            completion = msgspec.convert(answer, _Completion)
            choice = completion.choices[0]
        except (msgspec.ValidationError, IndexError) as error:
            raise DataError(f"the judge's answer is no chat completion: {error}") from error
        if choice.finish_reason == "length":
            raise DataError(f"the judge's answer is cut at max_tokens = {body['max_tokens']}: allow more")
        if not choice.message.content:
            raise DataError("the judge's answer is empty")
        return choice.message.content


class JudgeScorer:
    """Asks a judge about each trajectory; see `JudgeScorerSettings`.

    A vote that cannot be read is left out; with none left there is no score. A vote that cannot be had fails the
    scoring as a whole.
    """

    is_for_groups = False

    def __init__(self, judge: Judge, settings: JudgeScorerSettings) -> None:
        """Check the settings.

        Raises:
            SettingsError: the prompt is about nothing, or the pattern is none.
        """
        check_template(settings.prompt, "the judge's prompt")
        self._judge = judge
        self._settings = settings
        self._pattern = compiled(settings.score_pattern)
        self._scale = ScoreScale(settings.lowest, settings.highest)

    async def score(self, request: GroupScoreRequest) -> Sequence[Score]:
        """See `Scorer`."""
        return [await self._score(member) for member in request.members]

    async def _score(self, request: ScoreRequest) -> Score:
        question = filled(self._settings.prompt, request)
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._vote(question)) for _ in range(self._settings.votes)]
        votes = [vote.result() for vote in asked]
        read = [vote for vote in votes if isinstance(vote, float)]
        if not read:
            raise next(vote for vote in votes if isinstance(vote, DataError))
        return Score(sum(read) / len(read), metrics={"votes": float(len(read))})

    async def _vote(self, question: str) -> float | DataError:
        try:
            said = await self._judge.ask(question, system=self._settings.system)
            key = self._settings.score_key
            value = score_by_key(said, key) if key is not None else score_by_pattern(said, self._pattern)
            return self._scale.reward(value, said)
        except DataError as error:
            return error
