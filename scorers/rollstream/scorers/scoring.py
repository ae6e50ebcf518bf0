"""What a scorer is given and what it returns.

A scorer is a function of your own, sync (run in a thread) or async:

    async def score(request: ScoreRequest) -> Score | float | Mapping[str, float]: ...

    @scorer(group=True)
    async def rank(request: GroupScoreRequest) -> Sequence[Score | float | Mapping[str, float]]: ...

A number is the reward; a mapping holds ``reward`` and any named parts. A ``TransientError`` (and an ``OSError``, which
time-outs and refused connections are) is retried; any other exception is a failure of the scoring, see `attempts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import msgspec

from rollstream.schemas.errors import DataError, SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.scorers.transcripts import Transcript

if TYPE_CHECKING:
    from rollstream.scorers.judges import Judge

IS_GROUP_SCORER = "__rollstream_group_scorer__"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Score:
    """A finite reward, and what else is known: finite named parts and metrics, and anything msgpack can hold."""

    reward: float
    rewards: Mapping[str, float] = field(default_factory=dict[str, float])
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One trajectory that has samples, as it was made: ``trajectory.reward`` and ``rewards`` are the outcome's."""

    trajectory: Trajectory
    given_transcripts: tuple[Transcript, ...] = ()
    given_judge: Judge | None = None

    @property
    def transcript(self) -> Transcript:
        """The text of the main sample, the first one.

        Raises:
            SettingsError: no tokenizer is set; ends the worker.
        """
        return self.transcripts[0]

    @property
    def transcripts(self) -> tuple[Transcript, ...]:
        """The text of each sample, in their order.

        Raises:
            SettingsError: no tokenizer is set; ends the worker.
        """
        if not self.given_transcripts:
            raise SettingsError("the scorer asks for text: set scorer.tokenizer to the folder of the model's tokenizer")
        return self.given_transcripts

    @property
    def judge(self) -> Judge:
        """The judge model that the scorer's section names.

        Raises:
            SettingsError: it names none; ends the worker.
        """
        if self.given_judge is None:
            raise SettingsError(
                "the scorer asks a judge: set scorer.judges.default.url and .model, or name another one as the "
                "scorer's `judge`"
            )
        return self.given_judge


@dataclass(frozen=True, slots=True)
class GroupScoreRequest:
    """The members of one group that have samples, by ``member_index``.

    Attributes:
        members: at least one; the scores are returned in this order.
        unscored: members without samples: they failed.
        is_complete: False if members are missing: the deadline was over, or they come later, alone.
    """

    members: tuple[ScoreRequest, ...]
    unscored: tuple[Trajectory, ...] = ()
    is_complete: bool = True

    @property
    def judge(self) -> Judge:
        """See `ScoreRequest.judge`."""
        return self.members[0].judge


class Scorer(Protocol):
    """What scores: a function of the user's, a judge, a reward model. One score per request, in order."""

    @property
    def is_for_groups(self) -> bool:
        """Whether it is given whole groups; else each request's group has one member."""
        ...

    async def score(self, request: GroupScoreRequest) -> Sequence[Score]:
        """Score all members.

        Raises:
            TransientError: try again.
            SettingsError: it will never work like this; ends the worker.
            Exception: it could not be scored.
        """
        ...


def scorer(*, group: bool = False) -> Callable[[F], F]:
    """Mark a scorer function. ``group``: it is given all members of a group at once, a `GroupScoreRequest`."""

    def mark(function: F) -> F:
        setattr(function, IS_GROUP_SCORER, group)
        return function

    return mark


def as_score(returned: object) -> Score:
    """What a scorer function returned for one trajectory.

    Raises:
        DataError: it is no score, or holds a number that is not finite or an `extra` that cannot travel.
    """
    if isinstance(returned, Score):
        score = returned
    elif isinstance(returned, Mapping):
        parts = dict(cast("Mapping[str, float]", returned))
        if "reward" not in parts:
            raise DataError(f"a scorer returned {returned!r}: a mapping needs the key 'reward'")
        score = Score(parts.pop("reward"), parts)
    else:
        score = Score(cast("float", returned))
    for name, value in (("reward", score.reward), *score.rewards.items(), *score.metrics.items()):
        # numpy's and torch's scalars are numbers too; a text that looks like one is none.
        if isinstance(value, str | bytes) or not hasattr(value, "__float__") or not math.isfinite(value):
            raise DataError(f"a scorer returned {name} = {value!r}: a finite number is needed")
    try:
        msgspec.msgpack.encode(score.extra)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"a scorer returned `extra` that cannot travel ({error}): plain values only") from error
    return Score(float(score.reward), _floats(score.rewards), _floats(score.metrics), dict(score.extra))


def as_scores(returned: object, members: int) -> list[Score]:
    """What a group scorer returned.

    Raises:
        DataError: not one score per member, or as `as_score`.
    """
    if not isinstance(returned, Sequence) or isinstance(returned, str | bytes):
        kind = type(cast("object", returned)).__name__
        raise DataError(f"a group scorer returned {kind}: a sequence of scores is needed")
    scores = cast("Sequence[object]", returned)
    if len(scores) != members:
        raise DataError(f"a group scorer returned {len(scores)} scores for {members} members")
    return [as_score(each) for each in scores]


def _floats(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
