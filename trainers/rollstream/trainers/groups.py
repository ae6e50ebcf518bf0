"""From trajectories in any order to groups, each of which closes exactly once. Pure: no Kafka, no clock of its own.

A group is *open* until all members are there (in any status) or its deadline has passed, then *ready*, and *closed*
once it is taken: trained on or dropped. The first record with a trajectory id wins. What is checkpointed is the set of
closed groups and, per partition, the lowest offset of a record whose group is not closed: reading again from there
rebuilds exactly what was open and ready.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rollstream.schemas.codec import encode
from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.intervals import IntervalSet

Arrival = Literal["counted", "completed", "duplicate", "unequal_duplicate", "late"]
"""``completed``: counted, and it was the last member its group waited for."""

SILENT_PRODUCER_S = 60.0
"""One that holds places speaks every ten seconds; after this, and the groups' deadline, it is presumed dead."""
REMEMBERED_INCOMPLETE_GROUPS = 10_000
"""Groups closed without all members, of which it is still known who was missing: a late member is told from a copy."""


class GroupKey(NamedTuple):
    """Names a group within a topic."""

    run_id: str
    group_index: int


@dataclass(slots=True)
class ArrivingGroup:
    """What is there of a group that is not closed.

    Attributes:
        members: the first record per ``member_index``.
        first_offsets: per partition, the lowest offset of its records.
        known_since_s: the clock when the group was first heard of.
        is_overdue: its deadline has passed, nothing more is waited for.
    """

    key: GroupKey
    group_id: str
    group_size: int
    is_train: bool
    known_since_s: float
    members: dict[int, Trajectory] = field(default_factory=dict[int, Trajectory])
    first_offsets: dict[int, int] = field(default_factory=dict[int, int])
    is_overdue: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether it need not wait for more."""
        return self.is_overdue or len(self.members) == self.group_size

    def missing_members(self) -> frozenset[int]:
        """Member indices that have not arrived."""
        return frozenset(range(self.group_size)) - self.members.keys()


@dataclass(slots=True)
class _RunProgress:
    """How many groups of a run are known to be emitted, and since when."""

    groups_emitted: int = 0
    group_size: int = 0
    is_train: bool = True
    is_finished: bool = False
    marks: deque[tuple[int, float]] = field(default_factory=deque[tuple[int, float]])
    """(groups emitted, clock when that was first heard), ascending in both."""
    expired_to: int = 0
    """All groups below it have passed their deadline."""
    groups_reserved: int = 0
    heard_at_s: float = 0.0

    def is_silent(self, since_s: float) -> bool:
        """Whether its producer holds places that it does not use, and has said nothing since then."""
        return self.groups_reserved > self.groups_emitted and self.heard_at_s <= since_s

    def presume_emitted(self) -> None:
        """Nobody knows whether the reserved groups are there: they have their deadline like those that are."""
        self.groups_emitted = self.groups_reserved
        self.marks.append((self.groups_emitted, self.heard_at_s))


class GroupAssembler:
    """Collects members. ``ready`` groups stay until ``close`` is called for them."""

    def __init__(self, *, deadline_s: float, closed: Mapping[str, IntervalSet] | None = None) -> None:
        self._deadline_s = deadline_s
        self._closed: dict[str, IntervalSet] = dict(closed or {})
        self._open: dict[GroupKey, ArrivingGroup] = {}
        self._ready: dict[GroupKey, ArrivingGroup] = {}
        self._runs: dict[str, _RunProgress] = {}
        self._incomplete: OrderedDict[GroupKey, frozenset[int]] = OrderedDict()

    def add(self, trajectory: Trajectory, partition: int, offset: int, now_s: float) -> Arrival:
        """Take in one record.

        Raises:
            InvalidMessageError: the record contradicts the first record of its group; nothing has changed.
        """
        key = GroupKey(trajectory.run_id, trajectory.group_index)
        if self.is_closed(key):
            is_late = trajectory.member_index in self._incomplete.get(key, frozenset())
            return "late" if is_late else "duplicate"
        group = self._open.get(key) or self._ready.get(key)
        if group is None:
            group = self._open[key] = ArrivingGroup(
                key=key,
                group_id=trajectory.group_id,
                group_size=trajectory.group_size,
                is_train=trajectory.is_train,
                known_since_s=now_s,
            )
        _check_same_group(trajectory, group)
        first = group.members.get(trajectory.member_index)
        if first is not None:
            return "duplicate" if _are_equal(first, trajectory) else "unequal_duplicate"
        group.members[trajectory.member_index] = trajectory
        group.first_offsets[partition] = min(offset, group.first_offsets.get(partition, offset))
        return "completed" if self._sort_in(group) else "counted"

    def note_progress(self, progress: ProducerProgress, now_s: float) -> None:
        """Hear which groups exist: from now on each has a deadline, whether anything of it arrives or not."""
        run = self._runs.setdefault(progress.run_id, _RunProgress())
        run.group_size, run.is_train, run.is_finished = progress.group_size, progress.is_train, progress.is_finished
        run.groups_reserved = 0 if progress.is_finished else progress.groups_reserved
        run.heard_at_s = now_s
        if progress.groups_emitted > run.groups_emitted:
            run.groups_emitted = progress.groups_emitted
            run.marks.append((progress.groups_emitted, now_s))

    def has_overdue(self, now_s: float) -> bool:
        """Whether ``expire`` would end the wait for something."""
        limit = now_s - self._deadline_s
        if any(run.is_silent(self._silent_since_s(now_s)) for run in self._runs.values()):
            return True
        return any(run.marks and run.marks[0][1] <= limit for run in self._runs.values()) or any(
            group.known_since_s <= limit for group in self._open.values()
        )

    def expire(self, now_s: float) -> list[tuple[GroupKey, bool]]:
        """End the wait for groups past their deadline; call it only when everything in the log has been added.

        Returns:
            (key, is_train) of groups of which nothing has arrived; they are closed now.
        """
        limit = now_s - self._deadline_s
        for group in [group for group in self._open.values() if group.known_since_s <= limit]:
            self._give_up_waiting(group)
        lost: list[tuple[GroupKey, bool]] = []
        for run_id, run in self._runs.items():
            if run.is_silent(self._silent_since_s(now_s)):
                run.presume_emitted()
            while run.marks and run.marks[0][1] <= limit:
                emitted, _ = run.marks.popleft()
                for index in self._closed.setdefault(run_id, IntervalSet()).missing(run.expired_to, emitted):
                    key = GroupKey(run_id, index)
                    if key in self._open:
                        self._give_up_waiting(self._open[key])
                    elif key not in self._ready:
                        self._close(key, frozenset(range(run.group_size)))
                        lost.append((key, run.is_train))
                run.expired_to = emitted
        return lost

    def ready(self) -> Iterable[ArrivingGroup]:
        """Groups that wait to be taken."""
        return self._ready.values()

    def open(self) -> Iterable[ArrivingGroup]:
        """Groups that wait for members, in order of their first record."""
        return self._open.values()

    def close(self, key: GroupKey) -> None:
        """The ready group is trained on or dropped, for good."""
        self._close(key, self._ready.pop(key).missing_members())

    def is_closed(self, key: GroupKey) -> bool:
        """Whether the group was taken, here or before the checkpoint."""
        closed = self._closed.get(key.run_id)
        return closed is not None and key.group_index in closed

    def closed(self) -> Mapping[str, IntervalSet]:
        """Closed groups by run."""
        return self._closed

    def lowest_offsets(self) -> dict[int, int]:
        """Per partition, the lowest offset of a record whose group is not closed; none: not in the result."""
        lowest: dict[int, int] = {}
        for group in (*self._open.values(), *self._ready.values()):
            for partition, offset in group.first_offsets.items():
                lowest[partition] = min(offset, lowest.get(partition, offset))
        return lowest

    def is_exhausted(self) -> bool:
        """Whether every training run that is known has ended and each of its groups is closed or ready."""
        runs = {run_id: run for run_id, run in self._runs.items() if run.is_train}
        return bool(runs) and all(
            run.is_finished and self.unsettled_groups(run_id, run.groups_emitted) == 0 for run_id, run in runs.items()
        )

    def awaits_evaluations(self) -> bool:
        """Whether an emitted group of an evaluation run is neither closed nor ready."""
        return any(
            self.unsettled_groups(run_id, run.groups_emitted) > 0
            for run_id, run in self._runs.items()
            if not run.is_train
        )

    def unsettled_groups(self, run_id: str, groups_emitted: int) -> int:
        """Groups of the run that are neither closed nor ready."""
        closed = self._closed.get(run_id, IntervalSet())
        return sum(GroupKey(run_id, index) not in self._ready for index in closed.missing(0, groups_emitted))

    def _silent_since_s(self, now_s: float) -> float:
        return now_s - max(self._deadline_s, SILENT_PRODUCER_S)

    def _sort_in(self, group: ArrivingGroup) -> bool:
        if not group.is_ready or self._open.pop(group.key, None) is None:
            return False
        self._ready[group.key] = group
        return True

    def _give_up_waiting(self, group: ArrivingGroup) -> None:
        group.is_overdue = True
        self._sort_in(group)

    def _close(self, key: GroupKey, missing: frozenset[int]) -> None:
        self._closed.setdefault(key.run_id, IntervalSet()).add(key.group_index)
        if missing:
            self._incomplete[key] = missing
            if len(self._incomplete) > REMEMBERED_INCOMPLETE_GROUPS:
                self._incomplete.popitem(last=False)


def _check_same_group(trajectory: Trajectory, group: ArrivingGroup) -> None:
    expected = (group.group_id, group.group_size, group.is_train)
    if (trajectory.group_id, trajectory.group_size, trajectory.is_train) != expected:
        raise InvalidMessageError(
            f"trajectory {trajectory.trajectory_id!r}: (group_id, group_size, is_train) is "
            f"{(trajectory.group_id, trajectory.group_size, trajectory.is_train)!r}, but the first record of group "
            f"{group.key.group_index} of run {group.key.run_id!r} has {expected!r}",
            field="group_id",
        )


def _are_equal(first: Trajectory, second: Trajectory) -> bool:
    return encode(first, compress_above_bytes=2**62).value == encode(second, compress_above_bytes=2**62).value
