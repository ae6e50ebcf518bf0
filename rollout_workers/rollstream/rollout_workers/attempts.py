"""One attempt at a task: the agent, its limits, its reward."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec

from rollstream.rollout_workers.agents import find_agent
from rollstream.rollout_workers.effects import AttemptIdentity, EffectLog
from rollstream.rollout_workers.episode import Episode, EpisodeServices
from rollstream.rollout_workers.episode_limits import EpisodeCut
from rollstream.rollout_workers.grading import grade, is_graded
from rollstream.rollout_workers.rewards import RewardInput, score
from rollstream.rollout_workers.trajectory_assembly import Ending
from rollstream.schemas.errors import TransientError, single_errors
from rollstream.schemas.tasks import RolloutTask

STUCK_MARGIN_S = 3600.0
"""An attempt this much over its wall clock is stuck, not slow: it is cut and retried. Its parts give up sooner: a call
after half an hour of waiting for a broker or a place, a generation two minutes after it was aborted."""


class Score(msgspec.Struct, frozen=True):
    """The recorded result of the reward effect."""

    reward: float
    components: dict[str, float]


@dataclass(frozen=True, slots=True)
class AttemptRunner:
    """Shared by all episodes of a worker; holds no state of any."""

    services: EpisodeServices

    def begin(self, task: RolloutTask, identity: AttemptIdentity, log: EffectLog) -> Episode:
        """The episode, ready to ``run``.

        Raises:
            DataError: its prompt cannot be rendered.
        """
        return Episode(task, self.services, identity, log)

    async def run(self, episode: Episode, log: EffectLog) -> Ending:
        """Run the agent to its end, on what the journal holds and then for real.

        Raises:
            AttemptOverError, WorkerLeavingError, EngineDeadError: the attempt goes on elsewhere or not at all.
            Exception: the attempt has failed; ``failure_kind`` says whose fault it is.
        """
        task = episode.task
        run_agent = find_agent(task.agent)
        ending = Ending("completed", "stop")
        limit = asyncio.timeout(task.limits.wall_clock_s + STUCK_MARGIN_S)
        try:
            async with limit:
                await run_agent(episode)
        except EpisodeCut as cut:
            ending = Ending("truncated", cut.reason)
        except ExceptionGroup as failures:
            ending = _ending_of_branches(failures, log)
        except Exception as error:
            # What an agent makes of a failed effect does not matter: the effect's own failure decides.
            if log.failure is not None:
                raise log.failure from error
            if limit.expired():
                raise TransientError(
                    f"trajectory {task.trajectory_id!r} is {STUCK_MARGIN_S:.0f} s over its wall clock of "
                    f"{task.limits.wall_clock_s:.0f} s: something it waits for is stuck"
                ) from error
            raise
        if log.failure is not None:
            raise log.failure
        return await _scored(task, episode, ending, log)


def _ending_of_branches(failures: ExceptionGroup[Exception], log: EffectLog) -> Ending:
    """Of an agent whose branches ran in a TaskGroup: what failed decides, else the first limit that was reached."""
    errors = list(single_errors(failures))
    cut = next((error for error in errors if isinstance(error, EpisodeCut)), None)
    if log.failure is None and cut is not None and all(isinstance(error, EpisodeCut) for error in errors):
        return Ending("truncated", cut.reason)
    raise log.failure or next(error for error in errors if not isinstance(error, EpisodeCut))


async def _scored(task: RolloutTask, episode: Episode, ending: Ending, log: EffectLog) -> Ending:
    if task.reward is None:
        return ending
    spec = task.reward

    async def run() -> bytes:
        final_text = episode.final_text
        if is_graded(spec):
            result = await grade(spec, episode, final_text)
        else:
            observed = tuple(observation.content for observation in episode.observations)
            result = await score(spec, RewardInput(final_text, turn_texts=tuple(episode.texts), tool_results=observed))
        return msgspec.msgpack.encode(Score(result.reward, dict(result.components)))

    payload, _ = await log.perform("reward", spec.name.encode(), run)
    scored = msgspec.msgpack.decode(payload, type=Score)
    return Ending(ending.status, ending.stop_reason, scored.reward, scored.components)
