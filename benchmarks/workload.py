"""The episodes benchmarks run: questions in arithmetic with a calculator, for a scripted engine or the tiny model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from rollstream.cli.tiny_model import CALCULATOR, SYSTEM_PROMPT, make_tasks
from rollstream.rollout_workers.engine_settings import ScriptedSettings
from rollstream.rollout_workers.scripted_engine import LatencyProfile
from rollstream.schemas.ids import group_id, group_partition, trajectory_id
from rollstream.schemas.tasks import ChatMessage, EpisodeLimits, RolloutTask, SamplingParams
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.trajectory_log import TrajectoryLog
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

GROUP_SIZE = 8
PUBLISHES_AT_ONCE = 64
READ_DEADLINE_S = 600.0
SCRIPTED_LIMITS = EpisodeLimits(max_turns=8, max_response_tokens=4096, wall_clock_s=300.0)
SCRIPTED_SAMPLING = SamplingParams(max_tokens=1024)
TINY_LIMITS = EpisodeLimits(max_turns=3, max_response_tokens=192, wall_clock_s=60.0, tool_timeout_s=10.0)
TINY_SAMPLING = SamplingParams(temperature=1.0, max_tokens=32)


def real_latencies(time_scale: float = 1.0) -> LatencyProfile:
    """A busy engine on an accelerator: 250 tokens per second and request, lognormal, one in fifty 3 times slower."""
    return LatencyProfile(
        prefill_s_per_token=2e-5,
        token_s=0.004,
        token_sigma=0.3,
        tail_probability=0.02,
        tail_factor=3.0,
        time_scale=time_scale,
    )


def scripted_engine(concurrency: int, time_scale: float) -> ScriptedSettings:
    """Turns of lognormal length with a tool call in three of five."""
    return ScriptedSettings(script="long_tailed", max_num_seqs=concurrency, latency=real_latencies(time_scale))


def arithmetic_tasks(run_id: str, count: int, limits: EpisodeLimits, sampling: SamplingParams) -> list[RolloutTask]:
    """``count`` tasks in groups of eight; the same for the same arguments."""
    prompts = make_tasks(0, -(-count // GROUP_SIZE))
    return [
        RolloutTask(
            run_id=run_id,
            group_id=group_id(run_id, index // GROUP_SIZE),
            group_index=index // GROUP_SIZE,
            group_size=GROUP_SIZE,
            member_index=index % GROUP_SIZE,
            trajectory_id=trajectory_id(run_id, index // GROUP_SIZE, index % GROUP_SIZE),
            messages=[
                ChatMessage(role="system", content=SYSTEM_PROMPT),
                ChatMessage(role="user", content=prompts[index // GROUP_SIZE].prompt),
            ],
            tools=[CALCULATOR],
            sampling=sampling,
            limits=limits,
        )
        for index in range(count)
    ]


async def publish_tasks(kafka: KafkaSettings, tasks: Sequence[RolloutTask]) -> None:
    """Return when all are acknowledged."""
    waiting = iter(tasks)
    async with Publisher(kafka) as publisher, asyncio.TaskGroup() as group:
        for _ in range(PUBLISHES_AT_ONCE):
            group.create_task(_publish(publisher, waiting, kafka.topics["tasks"].partitions))


async def _publish(publisher: Publisher, waiting: Iterator[RolloutTask], partitions: int) -> None:
    for task in waiting:
        await publisher.publish(task, key=task.group_id, partition=group_partition(task.group_id, partitions))


async def read_run(log: TrajectoryLog, run_id: str, count: int) -> list[Trajectory]:
    """The first ``count`` distinct trajectories of a run.

    Raises:
        TimeoutError: they did not come.
    """
    found: dict[str, Trajectory] = {}
    async with asyncio.timeout(READ_DEADLINE_S):
        while len(found) < count:
            for record in await log.fetch(timeout_s=0.5):
                trajectory = decode_record(record, Trajectory)
                if trajectory.run_id == run_id:
                    found.setdefault(trajectory.trajectory_id, trajectory)
    return list(found.values())


def sampled_tokens(trajectory: Trajectory) -> int:
    """Tokens the policy sampled in it."""
    return sum(int(sample.response_mask.sum()) for sample in trajectory.samples)
