"""What durability costs: the same episodes with the journal and without, and the time one effect waits for it.

Two rollout workers, one with `rollout_worker.journal` off, take turns with the same tasks, A B A B, each alone at its
time; each pair gives one ratio of tokens per second. The latency is that of ``append``: from the decision to journal a
turn until it has been read back, for one episode alone and for 64 beside one another.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import msgspec
from bare_engine import EpisodeRun, steady_throughput
from figures import Figure, figure
from workbench import Workbench, percentile, spread
from workload import (
    SCRIPTED_LIMITS,
    SCRIPTED_SAMPLING,
    arithmetic_tasks,
    publish_tasks,
    read_run,
    sampled_tokens,
    scripted_engine,
)

from rollstream.rollout_workers.sample_building import RecordedGeneration
from rollstream.schemas.journal import JournalRecord, StartFacts
from rollstream.schemas.trajectories import Trajectory, VersionSpan
from rollstream.trainers.trajectory_log import TrajectoryLog
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.journal.keeper import JournalKeeper
from rollstream.transport.journal.owned_partition import OwnedPartition
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings

COMMAND = "python benchmarks/run.py --only journal"
CONCURRENCY = 64
TOKENS_PER_TURN = 200


def measure(bench: Workbench) -> list[Figure]:
    """Ratio of throughput and latency per turn."""
    return [*asyncio.run(_measure_latency(bench)), *asyncio.run(_measure_throughput(bench))]


async def _measure_latency(bench: Workbench) -> list[Figure]:
    alone, beside = bench.size(2000, 50), bench.size(200, 5)
    async with bench.topics() as kafka, _journal(kafka) as journal:
        bench.say("turns of one episode")
        warm_up_s = await _append_turns(journal, "warm-up", beside)
        alone_s = await _append_turns(journal, "alone", alone)
        bench.say(f"turns of {CONCURRENCY} episodes beside one another")
        async with asyncio.TaskGroup() as group:
            episodes = [group.create_task(_append_turns(journal, f"episode-{n}", beside)) for n in range(CONCURRENCY)]
        together_s = [latency_s for episode in episodes for latency_s in episode.result()]
    note = f"{len(alone_s)} turns of {TOKENS_PER_TURN} tokens; p99 {percentile(alone_s, 0.99) * 1e3:.1f} ms"
    together = (
        f"{len(together_s)} turns, back to back; p99 {percentile(together_s, 0.99) * 1e3:.1f} ms; first turns: "
        f"p50 {percentile(warm_up_s, 0.5) * 1e3:.1f} ms"
    )
    return [
        figure("journal a turn, read back, p50", percentile(alone_s, 0.5) * 1e3, "ms", bar=6.0, higher_is_better=False,
               command=COMMAND, note=note),
        figure(f"journal a turn, {CONCURRENCY} episodes, p50", percentile(together_s, 0.5) * 1e3, "ms",
               command=COMMAND, note=together),
    ]  # fmt: skip


@asynccontextmanager
async def _journal(kafka: KafkaSettings) -> AsyncGenerator[OwnedPartition]:
    async with (
        Publisher(kafka) as publisher,
        DeadLetterOffice(kafka, role="benchmark", worker_id="benchmark") as office,
        JournalKeeper(kafka, publisher, office) as keeper,
        asyncio.TaskGroup() as group,
    ):
        running = group.create_task(keeper.run())
        await keeper.prepare(0, None, "")
        yield keeper.of(0)
        running.cancel()


async def _append_turns(journal: OwnedPartition, trajectory_id: str, turns: int) -> list[float]:
    """Seconds each turn waited."""
    facts = msgspec.msgpack.encode(StartFacts(started_at=time.time()))
    start = JournalRecord(
        kind="start", trajectory_id=trajectory_id, attempt=1, key="1/1/w", writer="w", task_offset=0, payload=facts
    )
    birth = (await journal.append(start)).births[1]
    generation = RecordedGeneration(
        ids=list(range(1000, 1000 + TOKENS_PER_TURN)),
        logprobs=[-0.001 * n for n in range(TOKENS_PER_TURN)],
        finish_reason="stop",
        spans=[VersionSpan(0, TOKENS_PER_TURN, 1)],
        generate_s=1.0,
    )
    waited_s: list[float] = []
    for path in range(turns):
        began = time.perf_counter()
        await journal.append(
            JournalRecord(
                kind="effect", trajectory_id=trajectory_id, attempt=1, key=str(path), writer="w", birth=birth,
                digest=b"0" * 16, payload=msgspec.msgpack.encode(generation),
            )
        )  # fmt: skip
        waited_s.append(time.perf_counter() - began)
    return waited_s


async def _measure_throughput(bench: Workbench) -> list[Figure]:
    tokens_per_s: dict[bool, list[float]] = {True: [], False: []}
    for number in range(bench.size(3, 1)):
        for is_journaled in (True, False):
            name = f"{'with' if is_journaled else 'without'} the journal, round {number + 1}"
            tokens_per_s[is_journaled].append(await _tokens_per_s(bench, name, is_journaled))
    ratios = [on / off for on, off in zip(tokens_per_s[True], tokens_per_s[False], strict=True)]
    return [
        figure(
            "journal on / journal off, tokens/s",
            statistics.median(ratios),
            "x",
            bar=0.95,
            versus="the same worker without its journal",
            command=COMMAND,
            note=f"{spread(ratios)}; {CONCURRENCY} episodes at once, scripted engine with real latencies, tools on; "
            f"on: {statistics.median(tokens_per_s[True]):,.0f}, off: {statistics.median(tokens_per_s[False]):,.0f}",
        )
    ]


async def _tokens_per_s(bench: Workbench, name: str, is_journaled: bool) -> float:
    engine = scripted_engine(CONCURRENCY, time_scale=0.05 if bench.is_quick else 1.0)
    async with (
        bench.topics() as kafka,
        TrajectoryLog(kafka) as log,
        bench.role(kafka, "tool-worker", "tools", 'tool_worker.tools=["calculator"]'),
        bench.role(
            kafka,
            "rollout-worker",
            "rollout",
            f"rollout_worker.engine={json.dumps(engine.model_dump(mode='json', exclude_none=True))}",
            f"rollout_worker.max_running_episodes={CONCURRENCY}",
            f"rollout_worker.journal={json.dumps(is_journaled)}",
        ),
    ):
        await log.seek({})
        bench.say(name)
        tasks = arithmetic_tasks("journal", bench.size(384, 96), SCRIPTED_LIMITS, SCRIPTED_SAMPLING)
        await publish_tasks(kafka, tasks)
        return steady_throughput(_runs(await read_run(log, "journal", len(tasks)))).tokens_per_s


def _runs(trajectories: Sequence[Trajectory]) -> list[EpisodeRun]:
    return [EpisodeRun(each.timing.started_at, each.timing.finished_at, sampled_tokens(each)) for each in trajectories]
