"""EpisodePool: slots bound intake, partitions that leave take their episodes along, a drain ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from aiokafka import ConsumerRecord, TopicPartition

from rollstream.rollout_workers.episode_pool import EpisodePool
from rollstream.transport.records import Record


def record(offset: int, partition: int = 0) -> Record:
    return ConsumerRecord("tasks", partition, offset, 0, 0, b"k", b"v", None, 1, 1, [])


class Source:
    """Hands out records while there are any, then waits like a broker that has nothing."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.asked: list[int] = []
        self.is_empty = asyncio.Event()

    async def poll(self, *, max_records: int, timeout_s: float) -> Sequence[Record]:
        self.asked.append(max_records)
        taken, self.records = self.records[:max_records], self.records[max_records:]
        if not taken:
            self.is_empty.set()
            await asyncio.sleep(0.001)
        return taken


class Work:
    """Handles records until told to go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.two_started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.started: list[int] = []
        self.done: list[int] = []
        self.most_at_once = 0

    async def __call__(self, record: Record) -> bool:
        self.started.append(record.offset)
        self.most_at_once = max(self.most_at_once, len(self.started) - len(self.done))
        if len(self.started) == 2:
            self.two_started.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        self.done.append(record.offset)
        return True


async def test_no_more_records_run_than_there_are_slots() -> None:
    source, work, stop = Source([record(i) for i in range(20)]), Work(), asyncio.Event()
    work.go_on.set()
    pool = EpisodePool(work, max_running=3)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(pool.run(source, stop, drain_s=5))
        await source.is_empty.wait()
        stop.set()
    assert sorted(work.done) == list(range(20))
    assert work.most_at_once <= 3
    assert max(source.asked) <= 3
    assert pool.finished == 20


async def test_records_that_only_wait_take_no_slot_and_are_at_most_as_many_again() -> None:
    source, work, stop = Source([record(i) for i in range(20)]), Work(), asyncio.Event()
    pool = EpisodePool(work, max_running=3, parked=lambda: pool.running)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(pool.run(source, stop, drain_s=5))
        await work.two_started.wait()
        while len(work.started) < 6:  # noqa: ASYNC110  -- the pool announces itself to nobody
            await asyncio.sleep(0.001)
        stop.set()
        work.go_on.set()
    assert work.most_at_once == 6


async def test_a_drain_lets_running_records_finish_and_takes_no_more() -> None:
    source, work, stop = Source([record(i) for i in range(4)]), Work(), asyncio.Event()
    pool = EpisodePool(work, max_running=2)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        running = group.create_task(pool.run(source, stop, drain_s=5))
        await work.two_started.wait()
        stop.set()
        await asyncio.sleep(0)
        assert not running.done()
        work.go_on.set()
    assert work.done == [0, 1]
    assert [r.offset for r in source.records] == [2, 3]


async def test_a_drain_that_takes_too_long_cancels_the_rest() -> None:
    source, work, stop = Source([record(0)]), Work(), asyncio.Event()
    pool = EpisodePool(work, max_running=2)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(pool.run(source, stop, drain_s=0.01))
        await source.is_empty.wait()
        stop.set()
    assert work.done == []
    assert pool.running == 0
    assert pool.finished == 0


async def test_records_of_a_partition_that_left_are_cancelled_and_others_go_on() -> None:
    source, work, stop = Source([record(0, partition=0), record(1, partition=1)]), Work(), asyncio.Event()
    pool = EpisodePool(work, max_running=4)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(pool.run(source, stop, drain_s=5))
        await source.is_empty.wait()
        pool.abandon(frozenset({TopicPartition("tasks", 0)}))
        await work.cancelled.wait()
        work.go_on.set()
        stop.set()
    assert work.done == [1]


async def test_a_record_left_to_the_next_owner_is_not_counted_as_finished() -> None:
    async def leave(record: Record) -> bool:
        return record.offset == 0

    source, stop = Source([record(0), record(1)]), asyncio.Event()
    pool = EpisodePool(leave, max_running=4)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(pool.run(source, stop, drain_s=5))
        await source.is_empty.wait()
        stop.set()
    assert pool.finished == 1


async def test_what_a_record_raises_ends_the_pool() -> None:
    async def fail(record: Record) -> bool:
        raise RuntimeError("engine is dead")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(5):
            await EpisodePool(fail, max_running=1).run(Source([record(0)]), asyncio.Event(), drain_s=1)
    assert caught.group_contains(RuntimeError, match="engine is dead")
