"""The scorers that the settings name, ready to be used, and how one bundle is scored by all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.scorers import metrics
from rollstream.scorers.attempts import AttemptLimits, attempted
from rollstream.scorers.combining import Combination, Outcome, ScorerFailure, combination, scored
from rollstream.scorers.functions import load_function
from rollstream.scorers.judges import CHAT, JsonService, Judge, JudgeScorer
from rollstream.scorers.reward_models import RewardModelScorer
from rollstream.scorers.scoring import GroupScoreRequest, Score, Scorer, ScoreRequest
from rollstream.scorers.settings import (
    EndpointSettings,
    FunctionScorerSettings,
    JudgeScorerSettings,
    ScorerSettings,
)
from rollstream.scorers.transcripts import FolderTokenizer, TokenDecoder, Transcript, transcripts_of

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NamedScorer:
    """A scorer and the judge that its functions may ask."""

    name: str
    scorer: Scorer
    judge: Judge | None


class ScoringPanel:
    """Scores bundles with every scorer, a bounded number of scorings at once."""

    def __init__(
        self,
        scorers: Sequence[NamedScorer],
        how: Combination,
        limits: AttemptLimits,
        *,
        max_running: int,
        decoder: TokenDecoder | None = None,
    ) -> None:
        self._scorers = tuple(scorers)
        self._names = [named.name for named in scorers]
        self._how = how
        self._limits = limits
        self._decoder = decoder
        self._places = asyncio.Semaphore(max_running)
        self.running = 0

    @property
    def needs_groups(self) -> bool:
        """Whether some scorer must see all members of a group."""
        return any(named.scorer.is_for_groups for named in self._scorers)

    def describe(self) -> list[str]:
        """For people: one line per scorer, and one for the reward they make."""
        lines = [
            f"scorer {named.name}: {type(named.scorer).__name__} of "
            + ("whole groups" if named.scorer.is_for_groups else "each trajectory")
            for named in self._scorers
        ]
        terms = " + ".join(f"{weight:g} * {name}" for name, weight in self._how.weights.items())
        return [*lines, f"reward = {terms}; the reward before is kept as {self._how.outcome_name!r}"]

    async def score(self, members: Sequence[Trajectory], *, is_complete: bool = True) -> list[Trajectory]:
        """The same trajectories with their scores, in order; those without samples as they are.

        Raises:
            SettingsError: a scorer cannot work as it is set.
        """
        with_samples = [member for member in members if member.samples]
        if not with_samples:
            return list(members)
        unscored = tuple(member for member in members if not member.samples)
        transcripts = await self._transcripts(with_samples)
        outcomes: list[dict[str, Outcome]] = [{} for _ in with_samples]
        async with asyncio.TaskGroup() as group:
            for named in self._scorers:
                requests = [
                    ScoreRequest(member, texts, named.judge)
                    for member, texts in zip(with_samples, transcripts, strict=True)
                ]
                if named.scorer.is_for_groups:
                    whole = GroupScoreRequest(tuple(requests), unscored, is_complete)
                    group.create_task(self._run(named, whole, outcomes))
                    continue
                for request, outcome in zip(requests, outcomes, strict=True):
                    group.create_task(self._run(named, GroupScoreRequest((request,)), [outcome]))
        results = {
            member.trajectory_id: scored(
                member, {named.name: outcome[named.name] for named in self._scorers}, self._how
            )
            for member, outcome in zip(with_samples, outcomes, strict=True)
        }
        return [results.get(member.trajectory_id, member) for member in members]

    async def _run(
        self, named: NamedScorer, request: GroupScoreRequest, outcomes: Sequence[dict[str, Outcome]]
    ) -> None:
        async with self._places:
            self.running += 1
            metrics.RUNNING.set(self.running)
            started = time.monotonic()
            try:
                result = await attempted(lambda: named.scorer.score(request), self._limits, name=named.name)
            finally:
                self.running -= 1
                metrics.RUNNING.set(self.running)
            metrics.SECONDS.labels(named.name).observe(time.monotonic() - started)
        if isinstance(result, ScorerFailure):
            metrics.FAILURES.labels(named.name, result.type).inc()
        given: Sequence[Score | ScorerFailure] = (
            [result] * len(outcomes) if isinstance(result, ScorerFailure) else result
        )
        for outcome, each in zip(outcomes, given, strict=True):
            outcome[named.name] = each

    async def _transcripts(self, trajectories: Sequence[Trajectory]) -> list[tuple[Transcript, ...]]:
        decoder = self._decoder
        if decoder is None:
            return [()] * len(trajectories)
        return [await asyncio.to_thread(transcripts_of, trajectory, decoder) for trajectory in trajectories]


@asynccontextmanager
async def opened_panel(settings: ScorerSettings) -> AsyncGenerator[ScoringPanel]:
    """Everything that can be wrong with the settings is found here.

    Raises:
        SettingsError: names what is wrong and how to mend it.
    """
    if not settings.scorers:
        raise SettingsError(
            "nothing scores: name a function (`rollstream scorer --scorer module:function`), or add a section "
            "[scorer.scorers.<name>]"
        )
    how = combination(settings.combine, settings.weights, list(settings.scorers), settings.outcome_name)
    texts = [name for name, each in settings.scorers.items() if not isinstance(each, FunctionScorerSettings)]
    if texts and settings.tokenizer is None:
        raise SettingsError(f"{texts} read text: set scorer.tokenizer to the folder of the model's tokenizer")
    decoder = None if settings.tokenizer is None else await asyncio.to_thread(FolderTokenizer, settings.tokenizer)
    limits = AttemptLimits(settings.give_up_after_s, settings.attempt_timeout_s, settings.data_attempts)
    async with _http_session(settings) as session:
        scorers = _scorers(settings, session)
        yield ScoringPanel(scorers, how, limits, max_running=settings.max_running_scorings, decoder=decoder)


def _scorers(settings: ScorerSettings, session: aiohttp.ClientSession | None) -> list[NamedScorer]:
    judges = {
        name: Judge(_endpoint(session, judge.url.rstrip("/") + CHAT, judge), judge)
        for name, judge in settings.judges.items()
    }
    return [_scorer(name, settings, judges, session) for name in settings.scorers]


def _scorer(
    name: str, settings: ScorerSettings, judges: Mapping[str, Judge], session: aiohttp.ClientSession | None
) -> NamedScorer:
    given = settings.scorers[name]
    if isinstance(given, FunctionScorerSettings):
        if given.judge != "default" and given.judge not in judges:
            raise _unknown_judge(name, given.judge, judges)
        return NamedScorer(name, load_function(given.function), judges.get(given.judge))
    if isinstance(given, JudgeScorerSettings):
        if given.judge not in judges:
            raise _unknown_judge(name, given.judge, judges)
        return NamedScorer(name, JudgeScorer(judges[given.judge], given), judges[given.judge])
    return NamedScorer(name, RewardModelScorer(_endpoint(session, given.url, given), given), None)


def _endpoint(session: aiohttp.ClientSession | None, url: str, settings: EndpointSettings) -> JsonService:
    from rollstream.scorers.endpoints import Endpoint

    assert session is not None, "there is one where there is an endpoint"
    return Endpoint(session, url, settings)


def _unknown_judge(scorer: str, judge: str, judges: Mapping[str, Judge]) -> SettingsError:
    return SettingsError(
        f"scorer {scorer!r} asks the judge {judge!r}, known are {sorted(judges)}: add scorer.judges.{judge}.url and "
        ".model"
    )


@asynccontextmanager
async def _http_session(settings: ScorerSettings) -> AsyncGenerator[aiohttp.ClientSession | None]:
    if not settings.judges and not any(isinstance(each, EndpointSettings) for each in settings.scorers.values()):
        yield None
        return
    try:
        import aiohttp
    except ImportError as error:
        raise SettingsError("judges and reward models need aiohttp: pip install 'rollstream[server]'") from error
    # Requests are bounded by each service's own setting.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=True) as session:
        yield session
