"""Reward models behind HTTP: one JSON request per trajectory, one number in the answer."""

from __future__ import annotations

from collections.abc import Sequence

from rollstream.scorers.judges import JsonService
from rollstream.scorers.prompt_templates import check_template, filled_json
from rollstream.scorers.score_reading import value_at
from rollstream.scorers.scoring import GroupScoreRequest, Score
from rollstream.scorers.settings import RewardModelScorerSettings


class RewardModelScorer:
    """See `RewardModelScorerSettings`."""

    is_for_groups = False

    def __init__(self, service: JsonService, settings: RewardModelScorerSettings) -> None:
        """Check the settings.

        Raises:
            SettingsError: the body is about nothing.
        """
        check_template(settings.body, "the reward model's body")
        self._service = service
        self._settings = settings

    async def score(self, request: GroupScoreRequest) -> Sequence[Score]:
        """See `Scorer`."""
        bodies = [filled_json(self._settings.body, member) for member in request.members]
        return [Score(value_at(await self._service.post(body), self._settings.score_at)) for body in bodies]
