# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)
from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from rollstream.schemas.control import PolicyVersion, TrainerProgress, TrainerStart
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import DataLossError, PolicyFilesError, SettingsError, TransientError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers import AsyncTrajectoryStream, StreamStats, TrainingBatch
from rollstream.trainers.announcements import Announcements
from rollstream.transport.clients import start_consumer, start_producer
from rollstream.transport.control import ControlFollower
from rollstream.transport.policy_files import fetch_policy
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]
Emitted = Callable[..., Awaitable[None]]


def group_indices(batches: Iterable[TrainingBatch]) -> list[int]:
    return [group.group_index for batch in batches for group in batch.groups]


async def all_batches(stream: AsyncTrajectoryStream) -> list[TrainingBatch]:
    async with asyncio.timeout(60):
        return [batch async for batch in stream]


def groups_of(make: Make, count: int, **facts: Any) -> list[Trajectory]:
    return [make(group, member, **facts) for group in range(count) for member in range(2)]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    directory = tmp_path / "v1"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


async def test_every_group_comes_once_whatever_is_sent_twice(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted
) -> None:
    await send([*groups_of(make_trajectory, 7), *groups_of(make_trajectory, 3)])
    await emitted(7, is_finished=True)
    async with AsyncTrajectoryStream(kafka, groups_per_batch=2) as stream:
        batches = await all_batches(stream)
        assert sorted(group_indices(batches)) == list(range(7))
        assert [len(batch) for batch in batches] == [2, 2, 2, 1]
        assert [t.member_index for t in batches[0].groups[0].trajectories] == [0, 1]


async def test_a_restored_trainer_neither_skips_nor_repeats(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted
) -> None:
    await send([t for t in groups_of(make_trajectory, 12) if (t.group_index, t.member_index) != (0, 1)])
    history: list[int] = []
    state: dict[str, Any] | None = None
    for kept, lost in ((2, 1), (1, 0), (1, 1)):
        async with AsyncTrajectoryStream(kafka, groups_per_batch=2) as stream:
            if state is not None:
                stream.load_state_dict(json.loads(json.dumps(state)))
            for _ in range(kept):
                history += group_indices([await anext(stream)])
            state = stream.state_dict()
            for _ in range(lost):
                await anext(stream)
    await send([make_trajectory(0, 1)])
    await emitted(12, is_finished=True)
    async with AsyncTrajectoryStream(kafka, groups_per_batch=2) as stream:
        assert state is not None
        stream.load_state_dict(state)
        history += group_indices(await all_batches(stream))
        assert (stream.stats().consumed, stream.stats().duplicates_dropped) == (24, 0)
    assert sorted(history) == list(range(12))


async def test_two_readers_get_everything_and_only_the_trainer_speaks(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted, weights: Path
) -> None:
    await send(groups_of(make_trajectory, 4))
    await emitted(4, is_finished=True)
    async with (
        AsyncTrajectoryStream(kafka, groups_per_batch=1, trainer_id="trainer") as trainer,
        AsyncTrajectoryStream(kafka, groups_per_batch=3, trainer_id="watcher", is_observer=True) as observer,
    ):
        trained, observed = await asyncio.gather(all_batches(trainer), all_batches(observer))
        with pytest.raises(SettingsError, match="an observer publishes no policy"):
            await observer.publish_policy(1, weights)
    assert sorted(group_indices(trained)) == sorted(group_indices(observed)) == [0, 1, 2, 3]
    async with ControlFollower(kafka) as control:
        assert {start.trainer_id for start in control.all(TrainerStart).values()} == {"trainer"}
        [progress] = control.all(TrainerProgress).values()
        assert (progress.trainer_id, progress.groups_consumed) == ("trainer", 4)


async def test_bytes_that_are_no_trajectory_become_dead_letters_once_and_stop_nothing(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted
) -> None:
    producer = await start_producer(kafka, profile="durable")
    try:
        await producer.send_and_wait(kafka.topic("trajectories"), b"\xc1garbage", key=b"k", partition=0)
        await producer.send_and_wait(
            kafka.topic("trajectories"), b"\xff", partition=1, headers=[("schema", b"Trajectory")]
        )
    finally:
        await producer.stop()
    await send(groups_of(make_trajectory, 2))
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1) as stream:
        batches = [await anext(stream)]
        state = stream.state_dict()
    await emitted(2, is_finished=True)
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1) as stream:
        stream.load_state_dict(state)
        batches += await all_batches(stream)
        assert stream.stats().undecodable == 2
    assert sorted(group_indices(batches)) == [0, 1]
    letters = await read_dead_letters(kafka)
    assert sorted(letter.value or b"" for letter in letters) == [b"\xc1garbage", b"\xff"]
    assert {letter.origin_topic for letter in letters} == {kafka.topic("trajectories")}


async def read_dead_letters(kafka: KafkaSettings) -> list[DeadLetter]:
    topic = kafka.topic("dead-letters")
    consumer = await start_consumer(kafka, topic)
    letters: list[DeadLetter] = []
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        while any([await consumer.position(p) < end for p, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                letters += [decode_record(record, DeadLetter) for record in records]
    finally:
        await consumer.stop()
    return letters


async def test_a_position_that_retention_has_overtaken_is_an_error(
    kafka: KafkaSettings, make_trajectory: Make, send: Send
) -> None:
    from aiokafka import TopicPartition
    from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

    await send(groups_of(make_trajectory, 6))
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1) as stream:
        await anext(stream)
        state = stream.state_dict()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        topic = kafka.topic("trajectories")
        await admin.delete_records({TopicPartition(topic, p): RecordsToDelete(before_offset=-1) for p in (0, 1)})
    finally:
        await admin.close()
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1) as stream:
        stream.load_state_dict(state)
        with pytest.raises(DataLossError, match="is needed, but the log reaches from"):
            await anext(stream)


async def test_a_lost_group_is_closed_at_its_deadline_and_its_place_given_back(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted
) -> None:
    await send([*groups_of(make_trajectory, 1), make_trajectory(1, 0)])
    await emitted(3, is_finished=True)
    async with AsyncTrajectoryStream(kafka, groups_per_batch=2, group_deadline_s=0.5, min_members=1) as stream:
        batches = await all_batches(stream)
        assert sorted(group_indices(batches)) == [0, 1]
        assert stream.stats().lost == 1
    async with ControlFollower(kafka) as control:
        [progress] = control.all(TrainerProgress).values()
        assert progress.groups_dropped == 1


async def test_a_wait_that_is_too_long_says_what_is_missing(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted
) -> None:
    await send([make_trajectory(0, 0)])
    await emitted(1)
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1, timeout_s=0.5) as stream:
        with pytest.raises(TimeoutError, match=r"group 0 of run 'run' lacks members \[1\].*no rollout worker is alive"):
            await anext(stream)
        await send([make_trajectory(0, 1)])
        assert group_indices([await anext(stream)]) == [0], "asking again goes on"


async def test_a_policy_is_announced_under_the_trainers_lineage_with_files_that_check(
    kafka: KafkaSettings, weights: Path, tmp_path: Path
) -> None:
    async with AsyncTrajectoryStream(kafka, groups_per_batch=3) as stream:
        await stream.publish_policy(1, weights)
        await stream.publish_policy(2, weights, target_uri=str(tmp_path / "store" / "v2"))
        with pytest.raises(SettingsError, match="policy version 2 cannot follow 2"):
            await stream.publish_policy(2, weights)
        with pytest.raises(PolicyFilesError, match="does not exist"):
            await stream.publish_policy(3, tmp_path / "nowhere")
    async with ControlFollower(kafka) as control:
        policy, start = control.latest(PolicyVersion), control.latest(TrainerStart)
        progress = control.latest(TrainerProgress)
    assert policy is not None
    assert start is not None
    assert progress is not None
    assert (policy[0].version, policy[0].lineage, progress[0].version) == (2, start[1], 2)
    fetched = fetch_policy(policy[0].uri, policy[0].manifest_sha256, tmp_path / "cache")
    assert (fetched / "model.safetensors").read_bytes() == b"weights"


async def test_a_restored_trainer_opens_a_lineage_and_announces_its_policy_at_once(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted, weights: Path
) -> None:
    await send(groups_of(make_trajectory, 2))
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1) as stream:
        await anext(stream)
        await stream.publish_policy(1, weights)
        state = stream.state_dict()
        await stream.publish_policy(2, weights)
    await emitted(3, is_finished=True)
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1, max_staleness=2) as stream:
        stream.load_state_dict(state)
        await send(groups_of(make_trajectory, 3, version=2, lineage=state["lineage"])[4:])
        batches = await all_batches(stream)
        assert [batch.groups[0].staleness for batch in batches] == [1, 1], "of the base model; of the branch left at 1"
        lineage = stream.stats().lineage
    async with ControlFollower(kafka) as control:
        policy, start = control.latest(PolicyVersion), control.latest(TrainerStart)
    assert policy is not None
    assert start is not None
    assert (policy[0].version, policy[0].lineage) == (1, lineage)
    assert lineage > state["lineage"]
    assert (start[0].parent_lineage, start[0].parent_version) == (state["lineage"], 1)


async def test_a_trainer_that_has_been_succeeded_learns_it_when_it_publishes(
    kafka: KafkaSettings, weights: Path
) -> None:
    async with (
        AsyncTrajectoryStream(kafka, trainer_id="old") as old,
        AsyncTrajectoryStream(kafka, trainer_id="new") as new,
    ):
        await old.publish_policy(1, weights)
        await new.publish_policy(1, weights)
        async with ControlFollower(kafka) as control, asyncio.timeout(30):
            while (latest := control.latest(TrainerStart)) is None or latest[0].trainer_id != "new":
                await control.wait_for_change(timeout_s=1)
        with pytest.raises(SettingsError, match="trainer 'new' has started after this one"):
            await publish_until_refused(old, weights)


async def publish_until_refused(stream: AsyncTrajectoryStream, weights: Path) -> None:
    """The stream hears of the other trainer a moment after we do."""
    for version in range(2, 50):
        await stream.publish_policy(version, weights)


async def test_evaluations_go_to_the_callback_and_into_no_batch(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted
) -> None:
    await send(groups_of(make_trajectory, 2, run_id="eval", is_train=False))
    await send(groups_of(make_trajectory, 1))
    await emitted(2, run_id="eval", is_train=False, is_finished=True)
    evaluated: list[int] = []
    async with AsyncTrajectoryStream(
        kafka, groups_per_batch=1, on_evaluation=lambda group: evaluated.append(group.group_index)
    ) as stream:
        assert [group.run_id for group in (await anext(stream)).groups] == ["run"]
        await emitted(1, is_finished=True)
        assert await all_batches(stream) == []
    assert sorted(evaluated) == [0, 1]


async def test_commit_shows_the_lag(kafka: KafkaSettings, make_trajectory: Make, send: Send) -> None:
    from rollstream.transport.topic_admin import consumer_lag

    await send(groups_of(make_trajectory, 3))
    async with AsyncTrajectoryStream(kafka, groups_per_batch=3, trainer_id="me") as stream:
        await anext(stream)
        await stream.commit()
        lag = await consumer_lag(kafka, f"{kafka.prefix}trainer.me")
    assert sum(partition.lag for partition in lag) == 0
    assert sum(partition.committed or 0 for partition in lag) == 6


@pytest.mark.parametrize("failure", [TransientError("no acknowledgement"), asyncio.CancelledError()])
async def test_a_batch_is_not_lost_with_the_word_about_it(
    kafka: KafkaSettings,
    make_trajectory: Make,
    send: Send,
    emitted: Emitted,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
) -> None:
    await send(groups_of(make_trajectory, 3))
    await emitted(3, is_finished=True)
    tell = Announcements.tell
    failures = [failure]

    async def shaky(self: Announcements, stats: StreamStats) -> None:
        if stats.batches == 1 and failures:
            raise failures.pop()
        await tell(self, stats)

    monkeypatch.setattr(Announcements, "tell", shaky)
    async with AsyncTrajectoryStream(kafka, groups_per_batch=1) as stream:
        batches: list[TrainingBatch] = []
        try:
            batches.append(await anext(stream))
        except asyncio.CancelledError:
            with pytest.raises(SettingsError, match="ask for it before state_dict"):
                stream.state_dict()
            with pytest.raises(SettingsError, match="ask for it before the next policy"):
                await stream.publish_policy(1, weights)
        batches += await all_batches(stream)
        assert not failures
        assert [batch.number for batch in batches] == [0, 1, 2]
        assert sorted(group_indices(batches)) == [0, 1, 2]
        assert stream.state_dict()["counts"]["batches"] == 3
