"""P2: along every history of crashes and restores, each trajectory is trained on once, and it is the first record."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.batch_forming import BatchFormer
from rollstream.trainers.batches import TrainingBatch
from rollstream.trainers.settings import TrainerSettings
from rollstream.trainers.stream_state import PublishedPolicy, StreamState

Make = Callable[..., Trajectory]
Log = dict[int, list[Trajectory]]
TOPIC = "trajectories"
STEPS = 1000
"""More than any of these logs needs, kills included."""


def make_log(make: Make, groups: int, partitions: int, copies: int, random: Random) -> Log:
    """Two members per group, some records twice, in any order; ``worker_id`` names a record's place."""
    records = [(group, member) for group in range(groups) for member in range(2)]
    records += [random.choice(records) for _ in range(copies)]
    random.shuffle(records)
    log: Log = {partition: [] for partition in range(partitions)}
    for group, member in records:
        partition = group % partitions
        place = f"{partition}/{len(log[partition])}"
        is_failed = group % 5 == 4 and member == 0
        log[partition].append(make(group, member, worker_id=place, is_failed=is_failed))
    return log


def first_records(log: Log) -> dict[str, str]:
    first: dict[str, str] = {}
    for records in log.values():
        for record in records:
            first.setdefault(record.trajectory_id, record.worker_id)
    return first


class Trainer:
    """A process that reads the log; killed by forgetting it."""

    def __init__(self, log: Log, groups: int, checkpoint: str | None) -> None:
        self.log = log
        restored = json.loads(checkpoint) if checkpoint else None
        state = StreamState.from_dict(restored, topic=TOPIC, run_id=None) if restored else None
        options = TrainerSettings(groups_per_batch=2, min_members=2, max_staleness=None)
        self.former = BatchFormer(options, TOPIC, state)
        self.former.begin_at(dict.fromkeys(log, 0))
        progress = ProducerProgress(run_id="run", groups_emitted=groups, group_size=2, is_finished=True)
        self.former.note_progress(progress, now_s=0)

    def step(self, random: Random) -> TrainingBatch | None:
        """Read one record from some partition, then look for a batch."""
        unread = [p for p, records in self.log.items() if self.former.read_to[p] < len(records)]
        if unread:
            partition = random.choice(unread)
            offset = self.former.read_to[partition]
            self.former.add(self.log[partition][offset], partition, offset, now_s=0)
        return self.former.next_batch()

    def checkpoint(self) -> str:
        return json.dumps(self.former.state().to_dict())


def train(log: Log, groups: int, random: Random, kill_at: set[int]) -> list[str]:
    """Places of the records trained on, along the history that survives all kills."""
    history: list[str] = []
    checkpoints: list[tuple[str | None, int]] = [(None, 0)]
    trainer = Trainer(log, groups, None)
    for step in range(STEPS):
        if step in kill_at:
            checkpoint, length = random.choice(checkpoints[-3:])
            checkpoints = [c for c in checkpoints if c[1] <= length]
            del history[length:]
            trainer = Trainer(log, groups, checkpoint)
            continue
        batch = trainer.step(random)
        if batch is not None:
            history += [t.worker_id for t in batch.trajectories()]
        if random.random() < 0.3:
            checkpoints.append((trainer.checkpoint(), len(history)))
        if trainer.former.has_ended:
            return history
    raise AssertionError("the stream did not end")


@settings(max_examples=150, deadline=None)
@given(
    groups=st.integers(1, 8),
    partitions=st.integers(1, 3),
    copies=st.integers(0, 6),
    kill_at=st.sets(st.integers(0, 30), max_size=6),
    seed=st.integers(0, 2**16),
)
def test_no_crash_makes_a_trajectory_be_skipped_or_trained_twice(
    groups: int, partitions: int, copies: int, kill_at: set[int], seed: int, make_trajectory: Make
) -> None:
    random = Random(seed)
    log = make_log(make_trajectory, groups, partitions, copies, random)
    trainable = {t.trajectory_id for records in log.values() for t in records if t.group_index % 5 != 4}
    history = train(log, groups, random, kill_at)
    assert sorted(history) == sorted(place for tid, place in first_records(log).items() if tid in trainable)


@settings(max_examples=100, deadline=None)
@given(
    groups=st.integers(1, 8),
    copies=st.integers(0, 6),
    kill_at=st.sets(st.integers(0, 30), max_size=6),
    seed=st.integers(0, 2**16),
)
def test_with_one_partition_the_order_of_training_is_the_same_too(
    groups: int, copies: int, kill_at: set[int], seed: int, make_trajectory: Make
) -> None:
    log = make_log(make_trajectory, groups, 1, copies, Random(seed))
    undisturbed = train(log, groups, Random(seed), set())
    assert train(log, groups, Random(seed), kill_at) == undisturbed


@settings(max_examples=50, deadline=None)
@given(groups=st.integers(1, 6), copies=st.integers(0, 6), seed=st.integers(0, 2**16))
def test_records_read_again_are_not_counted_again(groups: int, copies: int, seed: int, make_trajectory: Make) -> None:
    random = Random(seed)
    log = make_log(make_trajectory, groups, 2, copies, random)
    trainer = Trainer(log, groups, None)
    for _ in range(STEPS):
        if random.random() < 0.2:
            trainer = Trainer(log, groups, trainer.checkpoint())
        trainer.step(random)
        if trainer.former.has_ended and trainer.former.read_to == {p: len(r) for p, r in log.items()}:
            break
    stats = trainer.former.stats()
    assert (stats.consumed, stats.duplicates_dropped) == (2 * groups, copies)


def test_after_a_restore_no_batch_is_formed_before_all_is_read_again(make_trajectory: Make) -> None:
    """Group 0 was ready at the checkpoint, so it belongs into the next batch, whatever is read first now."""
    options = TrainerSettings(groups_per_batch=2, max_staleness=None)
    log = {
        0: [make_trajectory(0, 0), make_trajectory(0, 1)],
        1: [make_trajectory(g, m) for g in (1, 2) for m in (0, 1)],
    }
    before = BatchFormer(options, TOPIC)
    before.begin_at({0: 0, 1: 0})
    for offset, record in enumerate(log[0]):
        before.add(record, 0, offset, now_s=0)
    assert before.next_batch() is None
    after = BatchFormer(options, TOPIC, before.state())
    for offset, record in enumerate(log[1]):
        after.add(record, 1, offset, now_s=0)
        assert after.next_batch() is None
    for offset, record in enumerate(log[0]):
        after.add(record, 0, offset, now_s=0)
    batch = after.next_batch()
    assert batch is not None
    assert [group.group_index for group in batch.groups] == [0, 1]


def test_a_lineage_that_is_restored_twice_keeps_its_whole_ancestry(make_trajectory: Make) -> None:
    """Lineage 3 is left at version 2, lineage 9 at version 4; the trainer goes on as 12."""
    policy = PublishedPolicy(uri="somewhere", manifest_sha256="0" * 64)
    former = BatchFormer(TrainerSettings(groups_per_batch=1, max_staleness=3, min_members=1), TOPIC)
    former.begin_at({0: 0})
    former.open_lineage(3, is_restored=False)
    former.published(2, policy)
    for lineage, version in ((9, 4), (12, 5)):
        state = StreamState.from_dict(json.loads(json.dumps(former.state().to_dict())), topic=TOPIC, run_id=None)
        former = BatchFormer(TrainerSettings(groups_per_batch=1, max_staleness=3, min_members=1), TOPIC, state)
        former.open_lineage(lineage, is_restored=True)
        former.published(version, policy)
    drawn = [(12, 5), (9, 4), (9, 6), (3, 2), (3, 3), (3, 1), (4, 5)]
    for index, (lineage, version) in enumerate(drawn):
        record = make_trajectory(index, 0, group_size=1, lineage=lineage, version=version)
        former.add(record, 0, index, now_s=0)
    ages: dict[tuple[int, int], int | None] = {}
    while (batch := former.next_batch()) is not None:
        ages[drawn[batch.groups[0].group_index]] = batch.groups[0].staleness
    assert ages == {(12, 5): 0, (9, 4): 1, (9, 6): 3, (3, 2): 3}, "the others are 4 versions away, or of nobody known"
    assert former.stats().stale_dropped == 3
