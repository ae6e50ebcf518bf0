"""What the pipeline costs: tokens per second through Kafka, rollout worker and tool worker, against the bare engine.

The same episodes, the same concurrency, the same engine; the pipeline's rollout worker and tool worker are processes of
their own and the trajectories are read back and decoded. Runs take turns, A B A B, and each pair gives one ratio. With
the scripted engine the bare run repeats the very requests of the pipeline's run in the order they were begun: same
tokens, same latencies. With vLLM both sample. Measured while every slot is taken: from the first episode's start to the
last one's; the journaled start and the acknowledged trajectory of each episode hold up its slot and so are included.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bare_engine import EpisodeRun, PlannedEpisode, Throughput, run_bare, steady_throughput
from figures import Figure, figure
from workbench import CpuMeter, Workbench, children, described, spread
from workload import (
    SCRIPTED_LIMITS,
    SCRIPTED_SAMPLING,
    TINY_LIMITS,
    TINY_SAMPLING,
    arithmetic_tasks,
    publish_tasks,
    read_run,
    sampled_tokens,
    scripted_engine,
)

from rollstream.cli.tiny_model import ensure_tiny_model
from rollstream.rollout_workers.chat_format import ChatFormat
from rollstream.rollout_workers.engine import Engine
from rollstream.rollout_workers.engine_settings import EngineSettings, VllmSettings, build_engine
from rollstream.rollout_workers.service import load_chat_format
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.trajectory_log import TrajectoryLog
from rollstream.transport.settings import KafkaSettings

CONCURRENCY = 64


@dataclass(frozen=True)
class Contest:
    """What runs on both sides."""

    name: str
    settings: RolloutWorkerSettings
    tasks: list[RolloutTask]
    rounds: int
    bar: float


@dataclass(frozen=True)
class BareSide:
    """The engine in this process, with the processes it has started."""

    engine: Engine
    chat: ChatFormat
    engine_pids: list[int]


@dataclass(frozen=True)
class Round:
    """One run of each side. ``busy``: cores kept busy, by what the processes are."""

    pipeline: Throughput
    bare: Throughput
    busy: dict[str, float]
    bare_busy: dict[str, float]
    turn_s: float
    tool_s: float

    @property
    def ratio(self) -> float:
        """Pipeline over bare engine."""
        return self.pipeline.tokens_per_s / self.bare.tokens_per_s


def measure_scripted(bench: Workbench) -> list[Figure]:
    """On the scripted engine with latencies of a real one."""
    engine = scripted_engine(CONCURRENCY, time_scale=0.05 if bench.is_quick else 1.0)
    contest = Contest(
        name="scripted",
        settings=RolloutWorkerSettings(engine=engine, max_running_episodes=CONCURRENCY),
        tasks=arithmetic_tasks("scripted", bench.size(384, 96), SCRIPTED_LIMITS, SCRIPTED_SAMPLING),
        rounds=bench.size(3, 1),
        bar=0.95,
    )
    return asyncio.run(_measure(bench, contest))


def measure_vllm(bench: Workbench) -> list[Figure]:
    """On the tiny model with vLLM on the CPU."""
    model = ensure_tiny_model(progress=bench.say)
    engine = VllmSettings(max_model_len=512, max_num_seqs=CONCURRENCY)
    contest = Contest(
        name="vllm",
        settings=RolloutWorkerSettings(model=str(model), engine=engine, max_running_episodes=CONCURRENCY),
        tasks=arithmetic_tasks("vllm", bench.size(2048, 128), TINY_LIMITS, TINY_SAMPLING),
        rounds=bench.size(5, 1),
        bar=0.85,
    )
    return asyncio.run(_measure(bench, contest))


async def _measure(bench: Workbench, contest: Contest) -> list[Figure]:
    async with bench.topics() as kafka, TrajectoryLog(kafka) as log, _bare_side(bench, contest) as bare:
        await log.seek({})
        bench.say("starting the pipeline")
        async with _pipeline_side(bench, kafka, contest) as pids:
            warm_up = _renamed(contest.tasks[: 2 * CONCURRENCY], "warm-up")
            await publish_tasks(kafka, warm_up)
            await read_run(log, "warm-up", len(warm_up))
            await run_bare(bare.engine, bare.chat, _plan(warm_up, []), concurrency=CONCURRENCY)
            rounds = [await _round(bench, contest, kafka, log, bare, pids, number) for number in range(contest.rounds)]
    return _figures(contest, rounds)


@asynccontextmanager
async def _bare_side(bench: Workbench, contest: Contest) -> AsyncGenerator[BareSide]:
    bench.say("starting the bare engine")
    before = children(os.getpid())
    chat = await asyncio.to_thread(load_chat_format, contest.settings)
    engine = await build_engine(contest.settings.engine, contest.settings.model)
    try:
        yield BareSide(engine, chat, [pid for pid in children(os.getpid()) if pid not in before])
    finally:
        await engine.close()


@asynccontextmanager
async def _pipeline_side(
    bench: Workbench, kafka: KafkaSettings, contest: Contest
) -> AsyncGenerator[dict[str, list[int]]]:
    """Process ids by what they are."""
    settings = contest.settings
    assignments = [
        f"rollout_worker.engine={_engine_json(settings.engine)}",
        f"rollout_worker.max_running_episodes={settings.max_running_episodes}",
        *([f"rollout_worker.model={settings.model}"] if settings.model else []),
    ]
    async with (
        bench.role(kafka, "tool-worker", "tools", 'tool_worker.tools=["calculator"]') as tools,
        bench.role(kafka, "rollout-worker", "rollout", *assignments) as rollout,
    ):
        yield {"rollout worker": [rollout.pid], "engine": children(rollout.pid), "tool worker": [tools.pid]}


def _engine_json(engine: EngineSettings) -> str:
    return json.dumps(engine.model_dump(mode="json", exclude_none=True))


async def _round(
    bench: Workbench,
    contest: Contest,
    kafka: KafkaSettings,
    log: TrajectoryLog,
    bare: BareSide,
    pids: dict[str, list[int]],
    number: int,
) -> Round:
    tasks = _renamed(contest.tasks, f"{contest.name}-{number}")
    bench.say(f"round {number + 1} of {contest.rounds}: {len(tasks)} episodes through the pipeline")
    meter = CpuMeter({**pids, "reader": [os.getpid()], "broker": [bench.broker_pid] if bench.broker_pid else []})
    await publish_tasks(kafka, tasks)
    arrived = await read_run(log, tasks[0].run_id, len(tasks))
    busy = meter.busy()
    bench.say(f"round {number + 1} of {contest.rounds}: the same on the bare engine")
    meter = CpuMeter({"engine": bare.engine_pids, "caller": [os.getpid()]})
    bare_runs = await run_bare(bare.engine, bare.chat, _plan(tasks, arrived), concurrency=CONCURRENCY)
    if contest.name == "scripted":
        assert sum(run.tokens for run in bare_runs) == sum(map(sampled_tokens, arrived)), "not the same episodes"
    turns = sum(trajectory.num_turns for trajectory in arrived)
    return Round(
        pipeline=steady_throughput(_runs(arrived)),
        bare=steady_throughput(bare_runs),
        busy=busy,
        bare_busy=meter.busy(),
        turn_s=sum(t.timing.generate_s for t in arrived) / turns,
        tool_s=sum(t.timing.tool_s for t in arrived) / turns,
    )


def _runs(trajectories: Sequence[Trajectory]) -> list[EpisodeRun]:
    failed = [each for each in trajectories if each.status == "failed"]
    assert not failed, failed[0]
    return [EpisodeRun(each.timing.started_at, each.timing.finished_at, sampled_tokens(each)) for each in trajectories]


def _renamed(tasks: Sequence[RolloutTask], run_id: str) -> list[RolloutTask]:
    """The same tasks under another run, so that nobody takes them for repetitions."""
    return arithmetic_tasks(run_id, len(tasks), tasks[0].limits, tasks[0].sampling)


def _plan(tasks: Sequence[RolloutTask], trajectories: Sequence[Trajectory]) -> list[PlannedEpisode]:
    """In the order in which the pipeline began them, with the request ids it used."""
    started = {each.trajectory_id: each for each in trajectories}
    ordered = sorted(tasks, key=lambda t: started[t.trajectory_id].timing.started_at) if trajectories else tasks
    births = {trajectory_id: each.birth for trajectory_id, each in started.items()}
    return [PlannedEpisode(task, f"{task.trajectory_id}-{births.get(task.trajectory_id, 0)}") for task in ordered]


def _figures(contest: Contest, rounds: Sequence[Round]) -> list[Figure]:
    command = f"python benchmarks/run.py --only pipeline_{contest.name}"
    engine = "scripted engine" if contest.name == "scripted" else "tiny model, vLLM on CPU"
    median = sorted(rounds, key=lambda each: each.ratio)[len(rounds) // 2]
    tokens_per_s = statistics.median(each.pipeline.tokens_per_s for each in rounds)
    return [
        figure(
            f"pipeline / bare engine, {engine}",
            statistics.median(each.ratio for each in rounds),
            "x",
            bar=contest.bar,
            versus="the same engine in one process, no Kafka",
            command=command,
            note=f"{spread([each.ratio for each in rounds])}; {_where_time_goes(median)}",
        ),
        figure(f"pipeline, {engine}", tokens_per_s, "tokens/s", command=command,
               note=f"{len(contest.tasks)} episodes, {CONCURRENCY} at once, sampled tokens only"),
        figure(f"bare engine, {engine}", statistics.median(each.bare.tokens_per_s for each in rounds), "tokens/s",
               command=command, note="the yardstick"),
    ]  # fmt: skip


def _where_time_goes(median: Round) -> str:
    return (
        f"median round: {median.pipeline.tokens:,} tokens in {median.pipeline.wall_s:.1f} s against "
        f"{median.bare.tokens:,} in {median.bare.wall_s:.1f} s; a turn generates {median.turn_s * 1e3:.0f} ms and "
        f"waits {median.tool_s * 1e3:.1f} ms for tools; share of one core: {described(median.busy)}; bare: "
        f"{described(median.bare_busy)}; {os.cpu_count()} cores"
    )
