"""Over the same log the sequence of training is the same, however it is fetched and whenever the reader is killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.batch_forming import BatchFormer
from rollstream.trainers.reading_order import READ_AHEAD_BYTES, ReadingOrder
from rollstream.trainers.settings import TrainerSettings
from rollstream.trainers.stream_state import StreamState

Make = Callable[..., Trajectory]
TOPIC = "trajectories"
STEPS = 10_000


@dataclass(frozen=True)
class Sent:
    partition: int
    offset: int
    timestamp: int
    trajectory: Trajectory
    value: bytes = b"x"


Log = dict[int, list[Sent]]


def make_log(make: Make, groups: int, partitions: int, random: Random) -> Log:
    """Two members per group, a few copies; clocks of the writers are far apart."""
    members = [(group, member) for group in range(groups) for member in range(2)]
    members += [random.choice(members) for _ in range(groups // 2)]
    random.shuffle(members)
    log: Log = {partition: [] for partition in range(partitions)}
    for group, member in members:
        records = log[group % partitions]
        timestamp = random.randint(0, 20)
        trajectory = make(group, member, worker_id=f"{group % partitions}/{len(records)}")
        records.append(Sent(group % partitions, len(records), timestamp, trajectory))
    return log


class Reader:
    """A trainer process; the network brings a few records of some partitions at a time."""

    def __init__(self, log: Log, groups: int, checkpoint: str | None) -> None:
        self.log = log
        state = StreamState.from_dict(json.loads(checkpoint), topic=TOPIC, run_id=None) if checkpoint else None
        self.former = BatchFormer(TrainerSettings(groups_per_batch=2, max_staleness=None), TOPIC, state)
        self.former.begin_at(dict.fromkeys(log, 0))
        self.former.note_progress(
            ProducerProgress(run_id="run", groups_emitted=groups, group_size=2, is_finished=True), now_s=0
        )
        self.fetched_to = dict(self.former.read_to)
        self.order: ReadingOrder[Sent] = ReadingOrder(log)

    def fetch(self, random: Random) -> None:
        for partition in random.sample(sorted(self.log), random.randint(0, len(self.log))):
            start = self.fetched_to[partition]
            brought = self.log[partition][start : start + random.randint(1, 3)]
            self.fetched_to[partition] += len(brought)
            for record in brought:
                self.order.put(record)

    def step(self) -> list[str]:
        """Take one record if the order allows it, then look for a batch; what was trained on."""
        awaited = {p for p in self.order.empty() if self.fetched_to[p] < len(self.log[p])}
        for record in self.order.take(awaited, 1):
            self.former.add(record.trajectory, record.partition, record.offset, now_s=0)
        batch = self.former.next_batch()
        return [t.worker_id for t in batch.trajectories()] if batch else []


def train(log: Log, groups: int, random: Random, kill_chance: float) -> list[str]:
    history: list[str] = []
    checkpoints: list[tuple[str | None, int]] = [(None, 0)]
    reader = Reader(log, groups, None)
    for _ in range(STEPS):
        if random.random() < kill_chance:
            checkpoints = checkpoints[: random.randint(max(1, len(checkpoints) - 1), len(checkpoints))]
            checkpoint, length = checkpoints[-1]
            del history[length:]
            reader = Reader(log, groups, checkpoint)
        if random.random() < 0.5:
            reader.fetch(random)
        history += reader.step()
        if random.random() < 0.3:
            checkpoints.append((json.dumps(reader.former.state().to_dict()), len(history)))
        if reader.former.has_ended:
            return history
    raise AssertionError("the stream did not end")


@settings(max_examples=120, deadline=None)
@given(groups=st.integers(1, 16), partitions=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_the_sequence_of_training_is_the_same_along_every_history(
    groups: int, partitions: int, seed: int, make_trajectory: Make
) -> None:
    log = make_log(make_trajectory, groups, partitions, Random(seed))
    undisturbed = train(log, groups, Random(seed + 1), kill_chance=0.0)
    assert len(undisturbed) == 2 * groups
    assert train(log, groups, Random(seed + 2), kill_chance=0.03) == undisturbed


def sent(partition: int, offset: int, timestamp: int, make: Make, value: bytes = b"x") -> Sent:
    return Sent(partition, offset, timestamp, make(offset, 0), value)


def test_a_partition_with_more_to_come_is_waited_for_and_one_at_its_end_is_not(make_trajectory: Make) -> None:
    order: ReadingOrder[Sent] = ReadingOrder([0, 1])
    order.put(sent(1, 0, 20, make_trajectory))
    assert order.take({0}, 10) == []
    order.put(sent(0, 0, 10, make_trajectory))
    assert [r.partition for r in order.take({0}, 10)] == [0], "the next of partition 0 may be older than that of 1"
    assert [r.partition for r in order.take(set(), 10)] == [1]
    assert order.take(set(), 10) == []


def test_of_a_partition_that_is_far_ahead_no_more_is_wanted(make_trajectory: Make) -> None:
    order: ReadingOrder[Sent] = ReadingOrder([0, 1])
    order.put(sent(0, 0, 1, make_trajectory, bytes(READ_AHEAD_BYTES)))
    assert order.wanted() == {1}
    assert len(order.take(set(), 1)) == 1
    assert order.wanted() == {0, 1}
