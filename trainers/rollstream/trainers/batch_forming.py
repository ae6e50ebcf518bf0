"""Which groups make the next batch, which are dropped, and how far producers may go. Pure: driven record by record.

Invariants: a group is delivered or dropped once, along every restored history; no delivered trajectory is older than
``max_staleness`` at the trainer's version; every dropped group gives its place under ``emit_limit`` back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.batches import TrainingBatch, TrajectoryGroup
from rollstream.trainers.groups import ArrivingGroup, GroupAssembler, GroupKey
from rollstream.trainers.intervals import IntervalSet
from rollstream.trainers.settings import TrainerSettings
from rollstream.trainers.staleness import BASE_LINEAGE, Ancestry, staleness
from rollstream.trainers.stream_state import Counts, PublishedPolicy, StreamState, StreamStats

Drop = Literal["failed", "stale", "zero_variance"]


class BatchFormer:
    """The whole decision part of a stream; the shell feeds it and publishes what it says."""

    def __init__(
        self,
        settings: TrainerSettings,
        topic: str,
        state: StreamState | None = None,
        *,
        awaits_evaluations: bool = False,
    ) -> None:
        """``awaits_evaluations``: the end of training waits for evaluation groups that were emitted before it."""
        self._awaits_evaluations = awaits_evaluations
        self._settings = settings
        self._topic = topic
        closed = {run: IntervalSet(intervals) for run, intervals in state.closed.items()} if state else {}
        self._groups = GroupAssembler(deadline_s=settings.group_deadline_s, closed=closed)
        self._counts = msgspec.structs.replace(state.counts) if state else Counts()
        self._read_to: dict[int, int] = dict(state.positions) if state else {}
        self._counted_to: dict[int, int] = dict(state.read_to) if state else {}
        self._ancestry = Ancestry(state.lineage, tuple(state.forks)) if state else Ancestry(BASE_LINEAGE)
        self._version = state.version if state else 0
        self._policy = state.policy if state else None
        self._groups_finished = self._counts.groups_consumed
        self._groups_of_other_runs: dict[str, int] = {}
        self._candidates: dict[GroupKey, TrajectoryGroup] = {}
        """Ready groups that may be delivered at the present version."""
        self._is_settled = False
        """Whether nothing has happened since ``next_batch`` said that there is none."""

    @property
    def is_settled(self) -> bool:
        """Whether ``next_batch`` has nothing new to decide."""
        return self._is_settled or not self._has_caught_up()

    @property
    def version(self) -> int:
        """The trainer's policy version."""
        return self._version

    @property
    def lineage(self) -> int:
        """The lineage of the trainer's versions."""
        return self._ancestry.lineage

    @property
    def ancestry(self) -> Ancestry:
        """Where the trainer's versions come from."""
        return self._ancestry

    @property
    def read_to(self) -> Mapping[int, int]:
        """Per partition, the offset of the next record to add."""
        return self._read_to

    def begin_at(self, offsets: Mapping[int, int]) -> None:
        """Say where partitions without a position begin."""
        self._read_to = {**offsets, **self._read_to}

    def open_lineage(self, lineage: int, *, is_restored: bool) -> None:
        """The trainer has started: its versions are of this lineage from now on."""
        ancestry = self._ancestry.restored(lineage, self._version) if is_restored else Ancestry(lineage)
        self._set_policy(ancestry, self._version)

    def follow(self, ancestry: Ancestry, version: int) -> None:
        """An observer measures age against the trainer's version."""
        self._set_policy(ancestry, version)

    def published(self, version: int, policy: PublishedPolicy) -> None:
        """A new policy version is out; the batch before it is finished."""
        self._set_policy(self._ancestry, version)
        self._policy = policy
        self.finish_batch()

    def rolled_back(self, ancestry: Ancestry, version: int, policy: PublishedPolicy) -> None:
        """The trainer goes on from an older version."""
        self._set_policy(ancestry, version)
        self._policy = policy
        self.finish_batch()

    def forget_policy(self) -> None:
        """The files of the present version are gone; the same version may be published again."""
        self._policy = None

    def check_version(self, version: int) -> None:
        """Versions of a lineage only grow.

        Raises:
            SettingsError: this one does not.
        """
        if version < self._version or (version == self._version and self._policy is not None):
            raise SettingsError(
                f"policy version {version} cannot follow {self._version} (lineage {self.lineage}): publish "
                "the number of optimizer steps done, which grows"
            )

    def add(self, trajectory: Trajectory, partition: int, offset: int, now_s: float) -> None:
        """Take in one record. Offsets of a partition ascend.

        Raises:
            InvalidMessageError: the record contradicts its group: ``skip`` it.
        """
        if self._is_of_other_run(trajectory.run_id):
            self._advance(partition, offset)
            return
        arrival = self._groups.add(trajectory, partition, offset, now_s)
        if self._advance(partition, offset):
            match arrival:
                case "counted" | "completed":
                    self._counts.consumed += 1
                case "late":
                    self._counts.late += 1
                case _:
                    self._counts.duplicates_dropped += 1
                    self._counts.unequal_duplicates += arrival == "unequal_duplicate"
        self._is_settled = self._is_settled and arrival != "completed"

    def is_new(self, partition: int, offset: int) -> bool:
        """Whether the record was not met before the checkpoint."""
        return offset >= self._counted_to.get(partition, 0)

    def skip(self, partition: int, offset: int) -> None:
        """Pass over a record that cannot be used."""
        self._counts.undecodable += self._advance(partition, offset)

    def note_progress(self, progress: ProducerProgress, now_s: float) -> None:
        """Hear how far a producer is."""
        if self._is_of_other_run(progress.run_id):
            if progress.is_train:
                self._groups_of_other_runs[progress.run_id] = progress.groups_emitted
            return
        self._groups.note_progress(progress, now_s)
        self._is_settled = False

    def has_overdue(self, now_s: float) -> bool:
        """Whether groups have passed their deadline; if so, add all that is in the log, then ``expire``."""
        return self._groups.has_overdue(now_s)

    def expire(self, now_s: float) -> None:
        """Close the groups past their deadline."""
        lost = self._groups.expire(now_s)
        self._counts.lost += sum(is_train for _, is_train in lost)
        self._is_settled = False

    def take_evaluations(self) -> list[TrajectoryGroup]:
        """Complete groups of evaluation tasks, each once. They take no place and have no age limit."""
        groups = [group for group in self._groups.ready() if not group.is_train]
        for group in groups:
            self._groups.close(group.key)
            self._counts.evaluations += len(group.members)
        return [self._delivered(group) for group in groups]

    def next_batch(self) -> TrainingBatch | None:
        """The next batch if there is one now. It counts as delivered: its groups are in every later state.

        After a restore there is none until all is read again that was read before the checkpoint: what is ready then is
        what was ready there, so the batches that follow are those that would have followed.
        """
        if self.is_settled:
            return None
        self._is_settled = True
        candidates = self._drop_and_sort()
        wanted = self._settings.groups_per_batch
        if self.has_ended or not candidates or (len(candidates) < wanted and not self._groups.is_exhausted()):
            return None
        batch = TrainingBatch(
            number=self._counts.batches,
            lineage=self.lineage,
            version=self._version,
            groups=tuple(candidates[:wanted]),
        )
        self._count_batch(batch)
        self._is_settled = False
        return batch

    @property
    def has_ended(self) -> bool:
        """Whether there will be no further batch; ask after ``next_batch`` returned None."""
        limit = self._settings.max_batches
        if limit is not None and self._counts.batches >= limit:
            return True
        if not self._groups.is_exhausted() or any(group.is_train for group in self._groups.ready()):
            return False
        return not (self._awaits_evaluations and self._groups.awaits_evaluations())

    def finish_batch(self) -> None:
        """The trainer is done with every batch delivered so far."""
        self._groups_finished = self._counts.groups_consumed

    @property
    def emit_limit(self) -> int:
        """Groups that producers may have emitted in all: finished, dropped, and under way."""
        under_way = (self._settings.pipeline_depth + 1) * self._settings.groups_per_batch
        others = sum(self._groups_of_other_runs.values())
        return self._groups_finished + under_way + self._counts.groups_dropped + others

    def open_groups(self) -> list[ArrivingGroup]:
        """Groups that wait for members, in order of their first record."""
        return list(self._groups.open())

    def state(self) -> StreamState:
        """The checkpoint now: every batch delivered so far counts as trained on."""
        lowest = self._groups.lowest_offsets()
        return StreamState(
            topic=self._topic,
            run_id=self._settings.run_id,
            positions={p: min(offset, lowest.get(p, offset)) for p, offset in self._read_to.items()},
            read_to={p: max(offset, self._counted_to.get(p, 0)) for p, offset in self._read_to.items()},
            closed={run: closed.intervals() for run, closed in self._groups.closed().items()},
            lineage=self.lineage,
            version=self._version,
            forks=list(self._ancestry.forks),
            policy=self._policy,
            counts=msgspec.structs.replace(self._counts),
        )

    def stats(self) -> StreamStats:
        """Counters and present sizes."""
        counts = msgspec.structs.asdict(self._counts)
        staleness_sum: int = counts.pop("staleness_sum")
        return StreamStats(
            **counts,
            mean_staleness=staleness_sum / max(1, self._counts.trajectories_trained),
            groups_open=len(list(self._groups.open())),
            groups_ready=len(list(self._groups.ready())),
            version=self._version,
            lineage=self.lineage,
            emit_limit=self.emit_limit,
        )

    def _set_policy(self, ancestry: Ancestry, version: int) -> None:
        """Ages have changed: judge everything that is ready anew."""
        self._ancestry, self._version = ancestry, version
        self._candidates.clear()
        self._is_settled = False

    def _has_caught_up(self) -> bool:
        return all(self._read_to.get(partition, 0) >= offset for partition, offset in self._counted_to.items())

    def _is_of_other_run(self, run_id: str) -> bool:
        return self._settings.run_id is not None and run_id != self._settings.run_id

    def _advance(self, partition: int, offset: int) -> bool:
        self._read_to[partition] = offset + 1
        return self.is_new(partition, offset)

    def _drop_and_sort(self) -> list[TrajectoryGroup]:
        for arriving in [group for group in self._groups.ready() if group.is_train]:
            if arriving.key in self._candidates:
                continue
            group = self._delivered(arriving)
            drop = self._reason_to_drop(group)
            if drop is None:
                self._candidates[arriving.key] = group
            else:
                self._groups.close(arriving.key)
                self._count_drop(drop)
        return sorted(self._candidates.values(), key=lambda group: (-_age(group), group.group_index, group.run_id))

    def _count_drop(self, drop: Drop) -> None:
        match drop:
            case "failed":
                self._counts.failed_dropped += 1
            case "stale":
                self._counts.stale_dropped += 1
            case "zero_variance":
                self._counts.zero_variance_dropped += 1

    def _reason_to_drop(self, group: TrajectoryGroup) -> Drop | None:
        settings = self._settings
        if len(group.trajectories) < min(settings.min_members, group.group_size):
            return "failed"
        if settings.max_staleness is not None and _age(group) > settings.max_staleness:
            return "stale"
        if settings.drop_zero_variance and len({t.reward for t in group.trajectories}) == 1:
            return "zero_variance"
        return None

    def _delivered(self, arriving: ArrivingGroup) -> TrajectoryGroup:
        members = [arriving.members[index] for index in sorted(arriving.members)]
        trainable = tuple(t for t in members if self._is_trainable(t))
        ages = [staleness(t, self._ancestry, self._version) for t in trainable]
        return TrajectoryGroup(
            run_id=arriving.key.run_id,
            group_id=arriving.group_id,
            group_index=arriving.key.group_index,
            group_size=arriving.group_size,
            trajectories=trainable,
            excluded=tuple(t for t in members if not self._is_trainable(t)),
            staleness=None if None in ages else max((age for age in ages if age is not None), default=0),
        )

    def _is_trainable(self, trajectory: Trajectory) -> bool:
        return (
            trajectory.status != "failed"
            and any(sample.is_trainable for sample in trajectory.samples)
            and (trajectory.reward is not None or not self._settings.needs_reward)
        )

    def _count_batch(self, batch: TrainingBatch) -> None:
        counts = self._counts
        counts.batches += 1
        counts.groups_consumed += len(batch)
        for group in batch.groups:
            key = GroupKey(group.run_id, group.group_index)
            del self._candidates[key]
            self._groups.close(key)
        for trajectory in batch.trajectories():
            age = staleness(trajectory, self._ancestry, self._version) or 0
            counts.trajectories_trained += 1
            counts.staleness_sum += age
            counts.max_staleness = max(counts.max_staleness, age)


def _age(group: TrajectoryGroup) -> float:
    return float("inf") if group.staleness is None else group.staleness
