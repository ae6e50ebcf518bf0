"""Which groups make the next batch, which are dropped, and how far producers may go. Pure: driven record by record.

Invariants: a group is delivered or dropped once, along every restored history; no delivered trajectory is older than
``max_staleness`` at the trainer's version; every dropped group gives its place under ``emit_limit`` back. A batch held
back for slow groups stops nobody: these groups are emitted already, and each has a deadline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from rollstream.schemas.control import ProducerProgress, WantedMember
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.batches import TrainingBatch, TrajectoryGroup
from rollstream.trainers.group_filters import age, is_replaceable, reason_to_drop, training_group
from rollstream.trainers.groups import ArrivingGroup, GroupAssembler, GroupKey
from rollstream.trainers.holding import AwaitedGroup
from rollstream.trainers.intervals import IntervalSet
from rollstream.trainers.settings import TrainerSettings
from rollstream.trainers.slow_groups import SlowGroups
from rollstream.trainers.staleness import BASE_LINEAGE, Ancestry, staleness
from rollstream.trainers.stream_state import Counts, PassedOver, PublishedPolicy, StreamState, StreamStats


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
        self._groups = GroupAssembler(
            deadline_s=settings.group_deadline_s,
            closed=closed,
            backfill_rounds=settings.backfill_rounds if settings.partial_groups == "backfill" else 0,
            is_replaceable=lambda trajectory: is_replaceable(trajectory, settings),
        )
        self._counts = state.counts.copied() if state else Counts()
        self._read_to: dict[int, int] = dict(state.positions) if state else {}
        self._counted_to: dict[int, int] = dict(state.read_to) if state else {}
        self._ancestry = Ancestry(state.lineage, tuple(state.forks)) if state else Ancestry(BASE_LINEAGE)
        self._version = state.version if state else 0
        self._policy = state.policy if state else None
        self._slow_groups = SlowGroups(settings, self._groups, state)
        self._passed_over = state.passed_over if state else None
        self._held_for: list[AwaitedGroup] = []
        self._is_hold_counted = False
        self._is_at_end = False
        self._groups_finished = self._counts.groups_consumed
        self._groups_of_other_runs: dict[str, int] = {}
        self._candidates: dict[GroupKey, TrajectoryGroup] = {}
        """Ready groups that may be delivered at the present version."""
        self._is_settled = False
        """Whether nothing has happened since ``next_batch`` said that there is none."""
        if state is None:
            self._note_limit()

    @property
    def is_settled(self) -> bool:
        """Whether ``next_batch`` has nothing new to decide."""
        return self._is_settled or not self.has_caught_up

    @property
    def has_caught_up(self) -> bool:
        """Whether all is read again that was read before the checkpoint."""
        return all(self._read_to.get(partition, 0) >= offset for partition, offset in self._counted_to.items())

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

    def pass_over(self, passed_over: PassedOver) -> None:
        """Reading begins behind some groups."""
        self._passed_over = passed_over

    def open_lineage(self, lineage: int, *, is_restored: bool) -> None:
        """The trainer has started: its versions are of this lineage from now on."""
        ancestry = self._ancestry.restored(lineage, self._version) if is_restored else Ancestry(lineage)
        self._set_policy(ancestry, self._version)

    def follow(self, ancestry: Ancestry, version: int) -> None:
        """An observer measures age against the trainer's version."""
        self._set_policy(ancestry, version)

    def published(self, version: int, policy: PublishedPolicy) -> None:
        """A new policy version is out; the batch before it is finished."""
        self._slow_groups.published(version)
        self._set_policy(self._ancestry, version)
        self._policy = policy
        self.finish_batch()

    def rolled_back(self, ancestry: Ancestry, version: int, policy: PublishedPolicy) -> None:
        """The trainer goes on from an older version."""
        self._set_policy(ancestry, version)
        self._policy = policy
        self.finish_batch()
        self._slow_groups.rolled_back(version)

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
                    self._counts.replacements += trajectory.replacement > 0
                case "late":
                    self._counts.late += 1
                case "unneeded":
                    self._counts.unneeded += 1
                case _:
                    self._counts.duplicates_dropped += 1
                    self._counts.unequal_duplicates += arrival == "unequal_duplicate"
        if arrival in ("counted", "completed"):
            self._candidates.pop(GroupKey(trajectory.run_id, trajectory.group_index), None)
            self._is_settled = self._is_settled and arrival == "counted" and not self._held_for

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
        if progress.is_train:
            self._slow_groups.emission.note_heard(progress.run_id, progress.groups_emitted, self._version)
        self._is_settled = False

    def has_overdue(self, now_s: float) -> bool:
        """Whether groups have passed their deadline; if so, add all that is in the log, then ``expire``."""
        return self._groups.has_overdue(now_s)

    def expire(self, now_s: float) -> None:
        """Close the groups past their deadline."""
        lost = self._groups.expire(now_s)
        self._counts.count_drop("lost", sum(is_train for _, is_train in lost))
        self._is_settled = False

    def end(self) -> None:
        """The log ends here: groups are as complete as they will be, and the last batch may be smaller."""
        self._groups.end_waiting()
        self._is_at_end = True
        self._is_settled = False

    def take_evaluations(self) -> list[TrajectoryGroup]:
        """Complete groups of evaluation tasks, each once. They take no place and have no age limit."""
        groups = [group for group in self._groups.ready() if not group.is_train]
        for group in groups:
            self._groups.close(group.key)
            self._counts.evaluations += len(group.members)
        return [training_group(group, self._settings, self._ancestry, self._version) for group in groups]

    def next_batch(self) -> TrainingBatch | None:
        """The next batch if there is one now. It counts as delivered: its groups are in every later state.

        After a restore there is none until all is read again that was read before the checkpoint: what is ready then is
        what was ready there, so the batches that follow are those that would have followed.
        """
        if self.is_settled:
            return None
        self._is_settled = True
        self._skip_passed_over()
        candidates = self._drop_and_sort()
        self._note_limit()
        self._held_for = []
        wanted = self._settings.groups_per_batch
        if self.has_ended or not candidates or (len(candidates) < wanted and not self._is_exhausted):
            return None
        self._held_for = self._slow_groups.to_wait_for(candidates[:wanted], self._ancestry, self._version)
        if self._held_for:
            self._counts.batches_held += not self._is_hold_counted
            self._is_hold_counted = True
            if not self.is_full:
                return None
            self._counts.holds_given_up += 1
            self._held_for = []
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
        if not self._is_exhausted or any(group.is_train for group in self._groups.ready()):
            return False
        return not (self._awaits_evaluations and self._groups.awaits_evaluations())

    def finish_batch(self) -> None:
        """The trainer is done with every batch delivered so far."""
        self._groups_finished = self._counts.groups_consumed
        self._note_limit()

    @property
    def is_full(self) -> bool:
        """Whether open and ready groups take all the memory they may."""
        return self._groups.size_bytes >= self._settings.buffer_bytes

    @property
    def held_for(self) -> Sequence[AwaitedGroup]:
        """The groups that a full batch is held back for."""
        return self._held_for

    def wanted(self) -> dict[str, list[WantedMember]]:
        """Replacements that open groups wait for, by run."""
        return self._groups.wanted()

    @property
    def _is_exhausted(self) -> bool:
        return self._is_at_end or self._groups.is_exhausted()

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
            counts=self._counts.copied(),
            version_step=self._slow_groups.version_step,
            version_groups=self._slow_groups.version_groups,
            groups_since=self._slow_groups.groups_since,
            limit_marks=self._slow_groups.emission.limits(),
            heard_marks=self._slow_groups.emission.heard(),
            passed_over=self._passed_over,
        )

    def stats(self) -> StreamStats:
        """Counters and present sizes."""
        counts = msgspec.structs.asdict(self._counts.copied())
        staleness_sum: int = counts.pop("staleness_sum")
        return StreamStats(
            **counts,
            mean_staleness=staleness_sum / max(1, self._counts.trajectories_trained),
            groups_open=len(list(self._groups.open())),
            groups_ready=len(list(self._groups.ready())),
            buffered_bytes=self._groups.size_bytes,
            version=self._version,
            lineage=self.lineage,
            emit_limit=self.emit_limit,
            drops=self._counts.drops(),
        )

    def _set_policy(self, ancestry: Ancestry, version: int) -> None:
        """Ages have changed: judge everything that is ready anew."""
        self._ancestry, self._version = ancestry, version
        self._candidates.clear()
        self._slow_groups.aged(version)
        self._is_settled = False

    def _is_of_other_run(self, run_id: str) -> bool:
        return self._settings.run_id is not None and run_id != self._settings.run_id

    def _advance(self, partition: int, offset: int) -> bool:
        self._read_to[partition] = offset + 1
        return self.is_new(partition, offset)

    def _skip_passed_over(self) -> None:
        over = self._passed_over
        if over is None or any(self._read_to.get(partition, 0) < end for partition, end in over.ends.items()):
            return
        for run_id, emitted in over.emitted.items():
            if not self._is_of_other_run(run_id):
                self._counts.count_drop("skipped", self._groups.close_unmet(run_id, emitted))
        self._passed_over = None

    def _drop_and_sort(self) -> list[TrajectoryGroup]:
        for arriving in [group for group in self._groups.ready() if group.is_train]:
            if arriving.key in self._candidates:
                continue
            group = training_group(arriving, self._settings, self._ancestry, self._version)
            drop = reason_to_drop(group, self._settings)
            if drop is None:
                self._candidates[arriving.key] = group
            else:
                self._close(group)
                self._counts.count_drop(drop)
        return sorted(self._candidates.values(), key=lambda group: (-age(group), group.group_index, group.run_id))

    def _note_limit(self) -> None:
        limit = self.emit_limit - sum(self._groups_of_other_runs.values())
        self._slow_groups.emission.note_limit(limit, self._version)

    def _close(self, group: TrajectoryGroup) -> None:
        key = GroupKey(group.run_id, group.group_index)
        for reason in group.exclusions:
            self._counts.members_excluded[reason] = self._counts.members_excluded.get(reason, 0) + 1
        self._counts.members_missing += group.group_size - len(group.trajectories) - len(group.excluded)
        self._groups.close(key)
        self._slow_groups.forget(key)

    def _count_batch(self, batch: TrainingBatch) -> None:
        counts = self._counts
        counts.batches += 1
        counts.groups_consumed += len(batch)
        self._is_hold_counted = False
        self._slow_groups.delivered(len(batch), self._version)
        for group in batch.groups:
            del self._candidates[GroupKey(group.run_id, group.group_index)]
            self._close(group)
        for trajectory in batch.trajectories():
            versions = staleness(trajectory, self._ancestry, self._version) or 0
            counts.trajectories_trained += 1
            counts.staleness_sum += versions
            counts.max_staleness = max(counts.max_staleness, versions)
