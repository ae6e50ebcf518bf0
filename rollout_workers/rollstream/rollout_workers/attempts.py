"""From a task to its trajectory: attempts, retries within the budgets, the reward, the ending.

Invariant: every task ends in exactly one terminal trajectory; infrastructure failures are retried or end as ``failed``
with no reward, never as data.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from rollstream.rollout_workers import metrics
from rollstream.rollout_workers.agents import find_agent
from rollstream.rollout_workers.budgets import AttemptBudgets, AttemptHistory, failure_kind
from rollstream.rollout_workers.effects import EffectLog, MemoryEffectLog
from rollstream.rollout_workers.episode import AttemptIdentity, Episode, EpisodeCut, EpisodeServices
from rollstream.rollout_workers.rewards import RewardInput, RewardResult, score
from rollstream.rollout_workers.trajectory_assembly import Ending, EpisodeTimes, WorkerFacts, assemble
from rollstream.schemas.errors import DataError, EngineDeadError, TransientError
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Trajectory, TrajectoryError

logger = logging.getLogger(__name__)

STUCK_MARGIN_S = 300.0
"""An attempt this much over its wall clock is stuck in infrastructure, not slow: it is cut and retried."""

StartAttempt = Callable[[int], Awaitable[int]]
"""Journals the start of the n-th attempt before anything touches the task's body, and returns its birth."""


class Score(msgspec.Struct, frozen=True):
    """The recorded result of the reward effect."""

    reward: float
    components: dict[str, float]


@dataclass(frozen=True, slots=True)
class TaskRunner:
    """Runs one task to its end. Shared by all episodes of a worker; holds no state of any."""

    services: EpisodeServices
    facts: WorkerFacts
    budgets: AttemptBudgets
    new_log: Callable[[], EffectLog] = MemoryEffectLog
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def run(self, task: RolloutTask, start_attempt: StartAttempt) -> Trajectory:
        """The task's trajectory, whatever happens. Only cancellation and a dead engine leave without one.

        Raises:
            EngineDeadError: no episode of this worker can go on; another worker begins the task again.
        """
        started_at = self.services.clock()
        history = AttemptHistory()
        while True:
            identity = AttemptIdentity(history.next_attempt, await start_attempt(history.next_attempt))
            try:
                episode, ending = await self._attempt(task, identity)
            except EngineDeadError:
                raise
            except Exception as error:
                kind = failure_kind(error)
                history = history.after(kind)
                metrics.FAILED_ATTEMPTS.labels(kind).inc()
                logger.warning("attempt %d failed (%s): %r", identity.attempt, kind, error)
                if not history.is_spent(self.budgets):
                    await self.pause(history.pause_s)
                    continue
                episode, ending = None, failed(error)
            times = EpisodeTimes(started_at, self.services.clock())
            return assemble(task, self.facts, identity, history, ending, times, episode)

    async def _attempt(self, task: RolloutTask, identity: AttemptIdentity) -> tuple[Episode, Ending]:
        log = self.new_log()
        episode = Episode(task, self.services, identity, log)
        run_agent = find_agent(task.agent)
        ending = Ending("completed", "stop")
        try:
            async with asyncio.timeout(task.limits.wall_clock_s + STUCK_MARGIN_S):
                await run_agent(episode)
        except EpisodeCut as cut:
            ending = Ending("truncated", cut.reason)
        except TimeoutError as error:
            raise TransientError(
                f"trajectory {task.trajectory_id!r} is {STUCK_MARGIN_S:.0f} s over its wall clock of "
                f"{task.limits.wall_clock_s:.0f} s: something it waits for is stuck"
            ) from error
        return episode, await self._scored(task, episode, ending, log)

    async def _scored(self, task: RolloutTask, episode: Episode, ending: Ending, log: EffectLog) -> Ending:
        if task.reward is None:
            return ending
        spec = task.reward

        async def run() -> bytes:
            result: RewardResult = await score(
                spec,
                RewardInput(
                    final_text=episode.texts[-1] if episode.texts else "",
                    turn_texts=tuple(episode.texts),
                    tool_results=tuple(observation.content for observation in episode.observations),
                ),
            )
            return msgspec.msgpack.encode(Score(result.reward, dict(result.components)))

        payload = await log.perform("reward", spec.name.encode(), run)
        scored = msgspec.msgpack.decode(payload, type=Score)
        return Ending(ending.status, ending.stop_reason, scored.reward, scored.components)


def failed(error: Exception) -> Ending:
    """The ending of a task whose budget is spent, or that cannot be run at all."""
    reason = "infrastructure" if isinstance(error, TransientError) else "agent_error"
    if isinstance(error, DataError):
        reason = "invalid_task"
    return Ending("failed", reason, error=TrajectoryError(type=type(error).__name__, message=str(error)[:2000]))
