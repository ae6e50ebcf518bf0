# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rollstream.schemas.control import BackfillWanted, TrainerProgress, TrainerStart
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.ids import group_id, group_partition
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers import (
    AsyncTrajectoryReplay,
    AsyncTrajectoryStream,
    FromPolicy,
    TrainingBatch,
    TrajectoryReplay,
    TrajectoryStream,
)
from rollstream.trainers.seeking import SeekTarget
from rollstream.trainers.trajectory_log import TrajectoryLog
from rollstream.transport.clients import start_producer
from rollstream.transport.control import ControlFollower
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]
Emitted = Callable[..., Awaitable[None]]


def indices(batches: Sequence[TrainingBatch]) -> list[int]:
    return sorted(group.group_index for batch in batches for group in batch.groups)


def groups(make: Make, which: Iterable[int], **facts: Any) -> list[Trajectory]:
    return [make(group, member, **facts) for group in which for member in range(2)]


async def in_turn(send: Send, trajectories: Iterable[Trajectory]) -> None:
    """Timestamps ascend, so the order of training is that of sending."""
    for trajectory in trajectories:
        await send([trajectory])


async def found(kafka: KafkaSettings, to: SeekTarget, **options: Any) -> list[int]:
    """Groups that an observer which begins there gets."""
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1, is_observer=True, max_staleness=None, **options) as s:
        await s.seek(to)
        async with asyncio.timeout(60):
            return indices([batch async for batch in s])


async def test_a_stream_begins_where_it_is_told(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted
) -> None:
    await in_turn(send, groups(make_trajectory, range(3), version=1, lineage=5))
    async with TrajectoryLog(kafka) as log:
        ends = await log.end_offsets()
    between = datetime.now(UTC)
    await asyncio.to_thread(_until_next_millisecond, between)
    await in_turn(send, groups(make_trajectory, range(3, 6), version=2, lineage=5))
    await emitted(6, is_finished=True)
    assert await found(kafka, "beginning") == list(range(6))
    assert await found(kafka, ends) == [3, 4, 5]
    assert await found(kafka, between) == [3, 4, 5]
    assert await found(kafka, between.timestamp()) == [3, 4, 5]
    assert await found(kafka, FromPolicy(2)) == [3, 4, 5]
    assert await found(kafka, FromPolicy(1, lineage=5)) == list(range(6))
    assert await found(kafka, "end") == []


def _until_next_millisecond(moment: datetime) -> None:
    while datetime.now(UTC).timestamp() < moment.timestamp() + 0.002:
        pass


async def test_what_is_passed_over_gives_its_places_back_and_new_groups_are_trained_on(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted
) -> None:
    await send(groups(make_trajectory, range(4)))
    await emitted(5)
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1, pipeline_depth=0) as stream:
        await stream.seek("end")
        next_batch = asyncio.create_task(anext(stream))
        async with ControlFollower(kafka) as control, asyncio.timeout(30):
            while (progress := control.latest(TrainerProgress)) is None or progress[0].emit_limit != 1 + 5:
                await control.wait_for_change(timeout_s=1)
        assert progress[0].dropped_for == {"skipped": 5}
        await send(groups(make_trajectory, [4, 5]))
        assert indices([await next_batch]) == [5], "group 4 was under way, and is passed over as well"
        state = stream.state_dict()
    await emitted(6, is_finished=True)
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1, pipeline_depth=0) as stream:
        stream.load_state_dict(state)
        assert [batch async for batch in stream] == []
        assert (stream.stats().skipped, stream.stats().groups_consumed) == (5, 1)


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ({0: 10**6}, "is outside"),
        ({10**4: 0}, "has no partition"),
        (datetime(2026, 1, 1), "needs a zone"),
        (FromPolicy(99), "no trajectory .* has a token of policy version 99"),
        ("start", "give 'beginning'"),
    ],
)
async def test_a_place_that_is_not_there_is_refused(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, to: Any, reason: str
) -> None:
    await send(groups(make_trajectory, [0]))
    async with AsyncTrajectoryStream(kafka) as stream:
        with pytest.raises(SettingsError, match=reason):
            await stream.seek(to)


async def test_it_is_too_late_to_seek_after_the_first_batch_and_useless_with_a_checkpoint(
    kafka: KafkaSettings, make_trajectory: Make, send: Send
) -> None:
    await send(groups(make_trajectory, [0]))
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1) as stream:
        await anext(stream)
        state = stream.state_dict()
        with pytest.raises(SettingsError, match="after the first batch"):
            await stream.seek("end")
    async with AsyncTrajectoryStream(kafka) as stream:
        stream.load_state_dict(state)
        with pytest.raises(SettingsError, match=r"seek\(\) after load_state_dict"):
            await stream.seek("end")
    async with AsyncTrajectoryStream(kafka) as stream:
        await stream.seek("end")
        with pytest.raises(SettingsError, match=r"load_state_dict\(\) after seek"):
            stream.load_state_dict(state)


async def test_a_replay_reads_a_stretch_once_more_and_says_nothing(
    kafka: KafkaSettings, make_trajectory: Make, send: Send
) -> None:
    await in_turn(send, [*groups(make_trajectory, range(5)), *groups(make_trajectory, [2])])
    await in_turn(send, [make_trajectory(5, 0), *groups(make_trajectory, [0], run_id="eval", is_train=False)])
    await in_turn(send, groups(make_trajectory, [7], run_id="other"))
    producer = await start_producer(kafka, profile="durable")
    try:
        await producer.send_and_wait(kafka.topic("trajectories"), b"\xc1garbage", key=b"k", partition=0)
    finally:
        await producer.stop()
    evaluated: list[str] = []
    for _ in range(2):
        async with AsyncTrajectoryReplay(
            kafka, run_id=None, groups_per_batch=3, min_members=1, on_evaluation=lambda g: evaluated.append(g.run_id)
        ) as replay:
            batches = [batch async for batch in replay]
            assert indices(batches) == [0, 1, 2, 3, 4, 5, 7], "group 5 with the member that is there"
            assert [len(batch) for batch in batches] == [3, 3, 1]
            assert (replay.stats().duplicates_dropped, replay.stats().undecodable) == (2, 1)
    assert evaluated == ["eval", "eval"]
    async with ControlFollower(kafka) as control:
        assert control.latest(TrainerStart) is None
        assert control.latest(TrainerProgress) is None
    async with AsyncTrajectoryReplay(kafka, run_id="other", groups_per_batch=3) as replay:
        assert indices([batch async for batch in replay]) == [7]
    async with AsyncTrajectoryReplay(kafka, run_id="run", groups_per_batch=3, partial_groups="drop") as replay:
        assert indices([batch async for batch in replay]) == [0, 1, 2, 3, 4]
        assert replay.stats().partial_dropped == 1


async def test_a_replay_ends_where_it_is_told(kafka: KafkaSettings, make_trajectory: Make, send: Send) -> None:
    await in_turn(send, groups(make_trajectory, range(3), version=1, lineage=5))
    await in_turn(send, groups(make_trajectory, range(3, 6), version=2, lineage=5))
    async with AsyncTrajectoryReplay(kafka, groups_per_batch=2, end=FromPolicy(2)) as replay:
        assert indices([batch async for batch in replay]) == [0, 1, 2]
    async with AsyncTrajectoryReplay(kafka, groups_per_batch=2, start=FromPolicy(2), max_batches=1) as replay:
        assert len(indices([batch async for batch in replay])) == 2


async def test_without_an_event_loop_it_is_the_same(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted
) -> None:
    await in_turn(send, groups(make_trajectory, range(3)))
    await in_turn(send, groups(make_trajectory, [0], run_id="eval", is_train=False))
    await emitted(3, is_finished=True)

    def read() -> tuple[list[int], list[int], list[str]]:
        evaluated: list[str] = []
        with TrajectoryReplay(
            kafka.bootstrap,
            prefix=kafka.prefix,
            groups_per_batch=2,
            on_evaluation=lambda group: evaluated.append(group.run_id),
        ) as replay:
            replayed = indices(list(replay))
            assert replay.stats().groups_consumed == 3
        with TrajectoryStream(kafka, groups_per_batch=1) as stream:
            stream.seek("end")
            assert list(stream) == []
            skipped = list(range(stream.stats().skipped))
        return replayed, skipped, evaluated

    assert await asyncio.to_thread(read) == ([0, 1, 2], [0, 1, 2], ["eval"])


async def test_members_that_failed_are_asked_for_and_replaced(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted, tmp_path: Path
) -> None:
    await in_turn(send, [make_trajectory(0, 0, is_failed=True), make_trajectory(0, 1), make_trajectory(1, 0)])
    await emitted(2, is_finished=True)
    options: dict[str, Any] = {"groups_per_batch": 1, "partial_groups": "backfill", "group_deadline_s": 1e6}
    async with AsyncTrajectoryStream(kafka, timeout_s=0.5, **options) as stream:
        with pytest.raises(TimeoutError, match=r"group 0 of run 'run' lacks replacements of members \[0\]"):
            await anext(stream)
        state = stream.state_dict()
    async with ControlFollower(kafka) as control:
        [wanted] = control.all(BackfillWanted).values()
    assert [(w.group_index, w.member_index, w.replacement) for w in wanted.members] == [(0, 0, 1)]
    async with AsyncTrajectoryStream(kafka, **options) as stream:
        stream.load_state_dict(state)
        await in_turn(send, [make_trajectory(0, 0, replacement=1), make_trajectory(1, 1)])
        batches = [batch async for batch in stream]
        assert indices(batches) == [0, 1]
        assert stream.stats().replacements == 1
    async with ControlFollower(kafka) as control:
        [wanted] = control.all(BackfillWanted).values()
    assert wanted.members == [], "nothing is wanted any more"


async def test_with_a_full_buffer_the_trainer_reads_on_until_there_is_a_batch(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted, caplog: pytest.LogCaptureFixture
) -> None:
    firsts = [make_trajectory(group, 0, tokens=1000) for group in range(20)]
    await in_turn(send, [*firsts, *(make_trajectory(group, 1) for group in range(20))])
    await emitted(20, is_finished=True)
    async with AsyncTrajectoryStream(kafka, groups_per_batch=2, buffer_bytes=50_000) as stream:
        first = await anext(stream)
        assert stream.stats().buffered_bytes > 50_000, "all the others are open"
        assert indices([first, *[batch async for batch in stream]]) == list(range(20))
    assert caplog.text.count("buffer_bytes (50000) are full with") == 1


def test_the_partition_of_these_groups_is_no_single_one() -> None:
    """The tests above read from several partitions."""
    assert len({group_partition(group_id("run", group), 8) for group in range(6)}) > 1
