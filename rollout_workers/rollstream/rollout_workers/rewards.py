"""Rewards by name: what an episode was worth.

A reward reads what was said and never what was sampled: ids stay with the trajectory. Built in are ``exact``,
``numeric`` and ``regex``; ``module:function`` names one of your own, sync or async:

    def my_reward(episode: RewardInput) -> float | Mapping[str, float] | RewardResult: ...

A mapping holds ``reward`` and any named components. A sync function runs in a thread and may block; a
``TransientError`` it raises is retried, anything else it raises counts as a failure of the data.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, cast

from rollstream.rollout_workers.answer_matching import final_number, same_number, same_text, spoken_text
from rollstream.rollout_workers.named_functions import import_function
from rollstream.rollout_workers.regex_matching import PatternError, last_match
from rollstream.schemas.errors import DataError, RollstreamError, SettingsError, TransientError
from rollstream.schemas.tasks import RewardSpec

REWARD_TIMEOUT_S = 120.0
"""Longest a reward may take. Rewards that ask a judge model need seconds, never minutes."""


@dataclass(frozen=True, slots=True)
class RewardInput:
    """What a reward may look at. ``answer`` and ``arguments`` come from the task's RewardSpec."""

    final_text: str
    """The text of the last turn, thinking included, stop token excluded; empty if there was none."""
    answer: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    turn_texts: tuple[str, ...] = ()
    tool_results: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RewardResult:
    """A finite reward and the finite named parts it came from."""

    reward: float
    components: Mapping[str, float] = field(default_factory=dict[str, float])


RewardOutcome = float | Mapping[str, float] | RewardResult
RewardFunction = Callable[[RewardInput], RewardOutcome | Awaitable[RewardOutcome]]


def exact(episode: RewardInput) -> RewardResult:
    """1 if what was said equals the answer up to white space. Argument: ``ignore_case`` (false)."""
    arguments = _Arguments("exact", episode)
    is_right = same_text(
        spoken_text(episode.final_text), arguments.answer(), ignore_case=arguments.take("ignore_case", bool, False)
    )
    arguments.refuse_others()
    return RewardResult(float(is_right), {"exact": float(is_right)})


def numeric(episode: RewardInput) -> RewardResult:
    """1 if the final number is the answer. Argument: ``tolerance`` (1e-6, absolute). GSM8K: "18" = "$18" = "18.0"."""
    arguments = _Arguments("numeric", episode)
    tolerance = _tolerance(arguments.take("tolerance", (int, float), 1e-6))
    arguments.refuse_others()
    right = final_number(arguments.answer())
    if right is None:
        raise DataError(f"reward 'numeric': the answer {episode.answer!r} holds no number: correct the task's answer")
    said = final_number(spoken_text(episode.final_text))
    is_right = said is not None and same_number(said, right, tolerance)
    return RewardResult(float(is_right), {"numeric": float(is_right), "answered": float(said is not None)})


def regex(episode: RewardInput) -> RewardResult:
    """1 if the last match of ``pattern`` is the answer, or if it matches at all when the task has no answer.

    Arguments: ``pattern``; ``group`` (1 if the pattern has groups, else the whole match); ``ignore_case`` (false).
    """
    arguments = _Arguments("regex", episode)
    pattern = arguments.take("pattern", str, None)
    group = arguments.take("group", (int, str), None)
    ignore_case = arguments.take("ignore_case", bool, False)
    arguments.refuse_others()
    if not pattern:
        raise DataError("reward 'regex' needs the argument 'pattern': add it to the task's reward arguments")
    try:
        found = last_match(pattern, spoken_text(episode.final_text), group=group, ignore_case=ignore_case)
    except PatternError as error:
        raise DataError(f"reward 'regex': {error}") from error
    is_right = found is not None and (
        episode.answer is None or same_text(found, episode.answer, ignore_case=ignore_case)
    )
    return RewardResult(float(is_right), {"regex": float(is_right), "answered": float(found is not None)})


_BUILT_IN: dict[str, RewardFunction] = {"exact": exact, "numeric": numeric, "regex": regex}


@cache
def find_reward(name: str) -> RewardFunction:
    """The reward a task names.

    Raises:
        SettingsError: there is no such reward, or it cannot be imported.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    return cast("RewardFunction", import_function(name, kind="reward", known=_BUILT_IN))


async def score(spec: RewardSpec, episode: RewardInput) -> RewardResult:
    """Score one episode; ``answer`` and ``arguments`` of ``episode`` are taken from ``spec``.

    Raises:
        DataError: the reward is unknown, failed, or returned something that is not a finite number.
        TransientError: the reward said so itself, or took longer than REWARD_TIMEOUT_S.
    """
    try:
        function = find_reward(spec.name)
    except SettingsError as error:
        raise DataError(str(error)) from error
    episode = replace(episode, answer=spec.answer, arguments=spec.arguments)
    limit = asyncio.timeout(REWARD_TIMEOUT_S)
    try:
        async with limit:
            outcome = await _call(function, episode)
    except TimeoutError as error:
        if not limit.expired():
            raise DataError(f"reward {spec.name!r} failed: {error!r}") from error
        raise TransientError(f"reward {spec.name!r} took longer than {REWARD_TIMEOUT_S:.0f} s") from error
    except RollstreamError:
        raise
    except Exception as error:
        raise DataError(f"reward {spec.name!r} failed: {type(error).__name__}: {error}") from error
    return _checked(spec.name, outcome)


async def _call(function: RewardFunction, episode: RewardInput) -> object:
    if function is exact or function is numeric:
        return function(episode)
    if inspect.iscoroutinefunction(function):
        return await function(episode)
    outcome = await asyncio.to_thread(function, episode)
    return await outcome if inspect.isawaitable(outcome) else outcome


def _checked(name: str, outcome: object) -> RewardResult:
    match outcome:
        case RewardResult(reward=reward, components=parts):
            pass
        case Mapping():
            parts = dict(cast("Mapping[str, object]", outcome))
            if "reward" not in parts:
                raise DataError(f"reward {name!r} returned a mapping without 'reward': {sorted(map(str, parts))}")
            reward = parts.pop("reward")
        case _:
            reward, parts = outcome, dict[str, object]()
    return RewardResult(
        _finite(name, "reward", reward), {str(part): _finite(name, str(part), value) for part, value in parts.items()}
    )


def _finite(name: str, part: str, value: object) -> float:
    try:
        number = float(cast("float", value)) if not isinstance(value, str | bytes) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"reward {name!r} returned {part} = {value!r}: it must be a finite number")
    return number


def _tolerance(value: float) -> Decimal:
    try:
        tolerance = Decimal(str(value))
    except InvalidOperation:
        tolerance = Decimal("NaN")
    if not tolerance.is_finite() or tolerance < 0:
        raise DataError(f"reward 'numeric': tolerance = {value!r} must be a finite number that is not negative")
    return tolerance


class _Arguments:
    """Reads the arguments of a built-in reward and refuses what it does not know."""

    def __init__(self, reward: str, episode: RewardInput) -> None:
        self._reward = reward
        self._episode = episode
        self._left = dict(episode.arguments)

    def answer(self) -> str:
        if self._episode.answer is None:
            raise DataError(f"reward {self._reward!r} needs an answer, the task has none: map the answer column")
        return self._episode.answer

    def take(self, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        value = self._left.pop(name, default)
        is_boolean_as_number = isinstance(value, bool) and kind is not bool
        if value is not default and (not isinstance(value, kind) or is_boolean_as_number):
            raise DataError(f"reward {self._reward!r}: argument {name!r} = {value!r} has the wrong type")
        return value

    def refuse_others(self) -> None:
        if self._left:
            raise DataError(f"reward {self._reward!r} does not know the arguments {sorted(self._left)}")
