from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from rollstream.schemas.errors import DataError, SettingsError, TransientError
from rollstream.schemas.trajectories import Trajectory
from rollstream.scorers.attempts import AttemptLimits, attempted
from rollstream.scorers.combining import ScorerFailure, combination
from rollstream.scorers.functions import FunctionScorer
from rollstream.scorers.panel import NamedScorer, ScoringPanel, opened_panel
from rollstream.scorers.scoring import GroupScoreRequest, ScoreRequest, scorer
from rollstream.scorers.settings import ScorerSettings

Make = Callable[..., Trajectory]
LIMITS = AttemptLimits(give_up_after_s=60.0, attempt_timeout_s=60.0, data_attempts=3, first_pause_s=0.0)
AT_ONCE = AttemptLimits(give_up_after_s=0.0, attempt_timeout_s=60.0, data_attempts=1, first_pause_s=0.0)


def panel(*functions: Callable[..., Any], limits: AttemptLimits = AT_ONCE, max_running: int = 8) -> ScoringPanel:
    named = [NamedScorer(function.__name__, FunctionScorer(function), None) for function in functions]
    how = combination("replace", {}, [each.name for each in named], "outcome")
    return ScoringPanel(named, how, limits, max_running=max_running)


class Failing:
    """Raises these, one after another, then returns 1.0."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> float:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 1.0


async def test_infrastructure_is_tried_as_long_as_there_is_time() -> None:
    down = Failing(*[TransientError("down")] * 5, ConnectionRefusedError(), TimeoutError())
    assert await attempted(down, LIMITS, name="s") == 1.0
    assert down.calls == 8


async def test_when_the_time_is_over_infrastructure_is_a_failure() -> None:
    assert await attempted(Failing(TransientError("down")), AT_ONCE, name="s") == ScorerFailure(
        "TransientError", "down"
    )


async def test_data_is_tried_so_often_whatever_infrastructure_did_between() -> None:
    bad = Failing(
        DataError("a"), TransientError("x"), ValueError("b"), TransientError("x"), KeyError("c"), DataError("d")
    )
    assert await attempted(bad, LIMITS, name="s") == ScorerFailure("KeyError", "'c'")
    assert bad.calls == 5


async def test_a_scorer_that_hangs_is_given_up() -> None:
    async def hang() -> float:
        await asyncio.Event().wait()
        return 0.0

    limits = AttemptLimits(0.0, attempt_timeout_s=0.01, data_attempts=1)
    assert await attempted(hang, limits, name="s") == ScorerFailure("TransientError", "not scored within 0.01 s")


async def test_wrong_settings_are_no_failure_of_a_trajectory() -> None:
    with pytest.raises(SettingsError, match="no key"):
        await attempted(Failing(SettingsError("no key")), LIMITS, name="s")
    with pytest.raises(SettingsError, match="no key"):
        await attempted(Failing(ExceptionGroup("g", [SettingsError("no key")])), LIMITS, name="s")


async def test_members_are_scored_alone_and_those_without_samples_are_the_same_objects(make: Make) -> None:
    def length(request: ScoreRequest) -> float:
        return float(len(request.trajectory.samples[0].response_ids))

    members = [make(0, 0, text="a"), make(0, 1, status="failed"), make(0, 2, text="abc")]
    done = await panel(length).score(members)

    assert [each.reward for each in done] == [1.0, None, 3.0]
    assert done[1] is members[1]
    assert done[2].rewards == {"outcome": 1.0, "length": 3.0}


async def test_a_group_scorer_sees_all_members_at_once_beside_one_that_does_not(make: Make) -> None:
    seen: list[GroupScoreRequest] = []

    @scorer(group=True)
    def rank(request: GroupScoreRequest) -> Sequence[float]:
        seen.append(request)
        return [float(place) for place, _ in enumerate(request.members)]

    def one(request: ScoreRequest) -> float:
        return 10.0

    both = panel(rank, one)
    done = await both.score([make(0, 0), make(0, 1, status="failed"), make(0, 2)], is_complete=False)

    assert both.needs_groups
    assert not panel(one).needs_groups
    assert [each.reward for each in done] == [10.0, None, 11.0]
    [request] = seen
    assert [each.member_index for each in request.unscored] == [1]
    assert not request.is_complete


async def test_one_failure_costs_one_reward(make: Make) -> None:
    def odd(request: ScoreRequest) -> float:
        if request.trajectory.member_index == 1:
            raise ValueError("cannot")
        return 5.0

    done = await panel(odd).score([make(0, 0), make(0, 1)])
    assert [each.reward for each in done] == [5.0, None]
    assert done[1].extra["scorer_errors"] == {"odd": "ValueError: cannot"}


async def test_so_many_scorings_run_at_once_and_no_more(make: Make) -> None:
    running, most = 0, 0

    async def busy(request: ScoreRequest) -> float:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        return 1.0

    await panel(busy, max_running=2).score([make(0, member) for member in range(3)])
    assert most == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "nothing scores"),
        ({"scorers": {"j": {"kind": "judge"}}}, r"\['j'\] read text: set scorer.tokenizer"),
        ({"scorers": {"f": {"kind": "function", "function": "nowhere:f"}}}, "'nowhere:f' cannot be loaded"),
        (
            {"scorers": {"f": {"kind": "function", "function": "math:sqrt", "judge": "other"}}},
            "'f' asks the judge 'other', known are",
        ),
        (
            {
                "scorers": {"f": {"kind": "function", "function": "math:sqrt"}},
                "judges": {"default": {"url": "http://x/v1", "model": "m", "key_variable": "NO_SUCH_KEY"}},
            },
            "'NO_SUCH_KEY': that environment variable is not set",
        ),
    ],
)
async def test_what_is_wrong_with_the_settings_is_found_before_anything_is_read(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        async with opened_panel(ScorerSettings.model_validate(settings)):
            pass
