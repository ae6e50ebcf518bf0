"""Trajectories per second from a rollout worker's publisher to a trainer's stream: acks=all, about 5,000 tokens each.

The writer is a process of its own with what a rollout worker publishes with; the reader is the trainer's stream, here,
forming complete groups. Both run at once, beside their broker.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import msgspec
from figures import Figure, figure
from wire import RESPONSE_TOKENS, TOKENS, make_trajectory
from workbench import Workbench

from rollstream.schemas.codec import encode
from rollstream.schemas.ids import group_id, group_partition, trajectory_id
from rollstream.schemas.trajectories import Trajectory, VersionSpan
from rollstream.trainers import AsyncTrajectoryStream
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings

COMMAND = "python benchmarks/run.py --only trajectory_stream"
RUN = "stream"
GROUP_SIZE = 8
GROUPS_PER_BATCH = 16
DISTINCT = 32
IN_FLIGHT = 64
"""As many as a busy rollout worker has episodes."""
DEADLINE_S = 300.0


@dataclass(frozen=True)
class Written:
    """What the writer says of itself; from the first publish (unix time) to the last acknowledgement."""

    begun_at: float
    wall_s: float
    cpu_s: float
    bytes_each: float


def measure(bench: Workbench) -> list[Figure]:
    """Rate and CPU time."""
    return asyncio.run(_measure(bench))


async def _measure(bench: Workbench) -> list[Figure]:
    batches = bench.size(64, 1)
    count = batches * GROUPS_PER_BATCH * GROUP_SIZE
    async with bench.topics() as kafka:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            async with AsyncTrajectoryStream(
                kafka, groups_per_batch=GROUPS_PER_BATCH, run_id=RUN, max_batches=batches, timeout_s=DEADLINE_S
            ) as stream:
                bench.say(f"{count} trajectories from one process to another")
                writing = asyncio.get_running_loop().run_in_executor(pool, write, kafka.model_dump(), count)
                cpu = time.process_time()
                read = [len(list(batch.trajectories())) async for batch in stream]
                read_at, reader_cpu_s = time.time(), time.process_time() - cpu
                written = await writing
    assert sum(read) == count, f"{count} were written, {sum(read)} were read"
    return _figures(count, written, read_at - written.begun_at, reader_cpu_s)


def write(kafka: dict[str, object], count: int) -> Written:
    """Publish ``count`` trajectories, ``IN_FLIGHT`` at once. Runs in a process of its own."""
    return asyncio.run(_write(KafkaSettings.model_validate(kafka), count))


async def _write(kafka: KafkaSettings, count: int) -> Written:
    patterns = [_pattern(index) for index in range(DISTINCT)]
    waiting = iter(range(count))
    partitions = kafka.topics["trajectories"].partitions
    async with Publisher(kafka) as publisher:
        begun_at, begin, cpu = time.time(), time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(_publish(publisher, patterns, waiting, partitions))
        wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
    return Written(begun_at, wall_s, cpu_s, sum(len(encode(each).value) for each in patterns) / DISTINCT)


async def _publish(publisher: Publisher, patterns: list[Trajectory], waiting: Iterator[int], partitions: int) -> None:
    for index in waiting:
        group_index, member_index = divmod(index, GROUP_SIZE)
        trajectory = msgspec.structs.replace(
            patterns[index % DISTINCT],
            group_id=group_id(RUN, group_index),
            group_index=group_index,
            member_index=member_index,
            trajectory_id=trajectory_id(RUN, group_index, member_index),
        )
        partition = group_partition(trajectory.group_id, partitions)
        await publisher.publish(trajectory, key=trajectory.group_id, partition=partition)


def _pattern(index: int) -> Trajectory:
    """A trajectory of this run, sampled by the model as it came."""
    trajectory = make_trajectory(index)
    sample = trajectory.samples[0]
    spans = [VersionSpan(span.start, span.end, 0, 0) for span in sample.version_spans]
    return msgspec.structs.replace(
        trajectory,
        run_id=RUN,
        group_size=GROUP_SIZE,
        lineage=0,
        policy_version_min=0,
        policy_version_max=0,
        samples=[msgspec.structs.replace(sample, version_spans=spans)],
    )


def _figures(count: int, written: Written, wall_s: float, reader_cpu_s: float) -> list[Figure]:
    each_ms = {"writer": written.cpu_s / count * 1e3, "reader": reader_cpu_s / count * 1e3}
    note = (
        f"{count} of {RESPONSE_TOKENS} response tokens ({TOKENS * count / wall_s / 1e6:.1f} Mtoken/s, "
        f"{written.bytes_each / 1e3:.1f} KB each), {IN_FLIGHT} in flight; writer, reader and broker on "
        f"{os.cpu_count()} cores; CPU writer {each_ms['writer']:.2f} ms, reader {each_ms['reader']:.2f} ms"
    )
    return [
        figure("trajectory stream", count / wall_s, "trajectories/s", bar=1000, command=COMMAND, note=note),
        figure(
            "trajectory stream, CPU of each", sum(each_ms.values()), "ms", bar=0.9, higher_is_better=False,
            command=COMMAND, note="writer and reader together; compression included, the broker not",
        ),
    ]  # fmt: skip
