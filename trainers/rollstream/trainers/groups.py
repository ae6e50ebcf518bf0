"""From trajectories in any order to groups, each of which closes exactly once. Pure: no Kafka, no clock of its own.

A group is *open* until all members are there (in any status) or its deadline has passed, then *ready*, and *closed*
once it is taken: trained on or dropped. The first record with a trajectory id wins. What is checkpointed is the set of
closed groups and, per partition, the lowest offset of a record whose group is not closed: reading again from there
rebuilds exactly what was open and ready.

With backfill a group that would become ready without some member asks for a replacement of it and stays open for
another deadline, up to a number of rounds. What is asked for follows from the records again after a restart; only
members that never came are asked for anew when their deadline has passed anew.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rollstream.schemas.codec import encode
from rollstream.schemas.control import ProducerProgress, WantedMember
from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.intervals import IntervalSet
from rollstream.trainers.trajectory_sizes import trajectory_bytes

Arrival = Literal["counted", "completed", "duplicate", "unequal_duplicate", "late", "unneeded"]
"""``completed``: counted, and it was the last record its group waited for. ``late``: the group has closed without the
member, or the member was replaced. ``unneeded``: a replacement of a member that needs none."""

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
        members: the record that counts per ``member_index``.
        first_offsets: per partition, the lowest offset of its records.
        known_since_s: the clock when the group was first heard of, or last asked for replacements.
        is_overdue: its deadline has passed, nothing more is waited for.
        rounds: how often it has asked for replacements.
        wanted: the replacement that is awaited per member.
        met: (member, replacement) of all records taken.
        size_bytes: of the records that count.
    """

    key: GroupKey
    group_id: str
    group_size: int
    is_train: bool
    known_since_s: float
    members: dict[int, Trajectory] = field(default_factory=dict[int, Trajectory])
    first_offsets: dict[int, int] = field(default_factory=dict[int, int])
    is_overdue: bool = False
    rounds: int = 0
    wanted: dict[int, int] = field(default_factory=dict[int, int])
    met: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    size_bytes: int = 0

    @property
    def is_answered(self) -> bool:
        """Whether everything it has asked for is there."""
        return len(self.members) == self.group_size and not self.wanted

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

    def __init__(
        self,
        *,
        deadline_s: float,
        closed: Mapping[str, IntervalSet] | None = None,
        backfill_rounds: int = 0,
        is_replaceable: Callable[[Trajectory], bool] = lambda _: False,
    ) -> None:
        """``is_replaceable``: whether another rollout should take the member's place."""
        self._deadline_s = deadline_s
        self._backfill_rounds = backfill_rounds
        self._is_replaceable = is_replaceable
        self._closed: dict[str, IntervalSet] = dict(closed or {})
        self._open: dict[GroupKey, ArrivingGroup] = {}
        self._ready: dict[GroupKey, ArrivingGroup] = {}
        self._runs: dict[str, _RunProgress] = {}
        self._incomplete: OrderedDict[GroupKey, frozenset[int]] = OrderedDict()
        self.size_bytes = 0
        """Of all open and ready groups."""

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
        refused = self._refusal(trajectory, group)
        if refused is not None:
            return refused
        self._take(trajectory, group)
        group.met.add((trajectory.member_index, trajectory.replacement))
        group.first_offsets[partition] = min(offset, group.first_offsets.get(partition, offset))
        wanted = group.wanted.get(trajectory.member_index)
        if wanted is not None and (trajectory.replacement >= wanted or not self._is_replaceable(trajectory)):
            del group.wanted[trajectory.member_index]
        return "completed" if group.is_answered and self._end_round(group, now_s) else "counted"

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
            self._give_up_waiting(group, now_s)
        lost: list[tuple[GroupKey, bool]] = []
        for run_id, run in self._runs.items():
            if run.is_silent(self._silent_since_s(now_s)):
                run.presume_emitted()
            while run.marks and run.marks[0][1] <= limit:
                emitted, _ = run.marks.popleft()
                for index in self._closed.setdefault(run_id, IntervalSet()).missing(run.expired_to, emitted):
                    key = GroupKey(run_id, index)
                    if key in self._open:
                        if self._open[key].rounds == 0:
                            self._give_up_waiting(self._open[key], now_s)
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

    def end_waiting(self) -> None:
        """Nothing more will come: every open group is ready as it is."""
        for group in list(self._open.values()):
            group.is_overdue = True
            self._ready[group.key] = self._open.pop(group.key)

    def close(self, key: GroupKey) -> None:
        """The ready group is trained on or dropped, for good."""
        group = self._ready.pop(key)
        self.size_bytes -= group.size_bytes
        self._close(key, group.missing_members() | group.wanted.keys())

    def is_closed(self, key: GroupKey) -> bool:
        """Whether the group was taken, here or before the checkpoint."""
        closed = self._closed.get(key.run_id)
        return closed is not None and key.group_index in closed

    def closed(self) -> Mapping[str, IntervalSet]:
        """Closed groups by run."""
        return self._closed

    def unmet(self, allowed: Callable[[str], int]) -> set[GroupKey]:
        """Training groups that are emitted, and of which nothing has arrived.

        ``allowed``: groups of a run that matter, from the first.
        """
        return {
            key
            for run_id, run in self._runs.items()
            if run.is_train
            for index in self._closed.get(run_id, IntervalSet()).missing(0, min(run.groups_emitted, allowed(run_id)))
            if (key := GroupKey(run_id, index)) not in self._ready and key not in self._open
        }

    def close_unmet(self, run_id: str, emitted: int) -> int:
        """Close the first ``emitted`` groups of a known run as far as nothing of them is here; how many train."""
        run = self._runs.get(run_id)
        if run is None:
            return 0
        closed = 0
        for index in self._closed.setdefault(run_id, IntervalSet()).missing(0, emitted):
            key = GroupKey(run_id, index)
            if key not in self._open and key not in self._ready:
                self._close(key, frozenset(range(run.group_size)))
                closed += run.is_train
        return closed

    def lowest_unclosed(self) -> dict[str, int]:
        """Per run that is known, the first group that is not closed."""
        return {
            run_id: next(self._closed.get(run_id, IntervalSet()).missing(0, sys.maxsize))
            for run_id in self._runs.keys() | self._closed.keys()
        }

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

    def wanted(self) -> dict[str, list[WantedMember]]:
        """Replacements that open groups wait for, by run, in the order of groups and members."""
        wanted: dict[str, list[WantedMember]] = {}
        for key, group in sorted(self._open.items()):
            for member, replacement in sorted(group.wanted.items()):
                wanted.setdefault(key.run_id, []).append(
                    WantedMember(group_index=key.group_index, member_index=member, replacement=replacement)
                )
        return wanted

    def _take(self, trajectory: Trajectory, group: ArrivingGroup) -> None:
        replaced = group.members.get(trajectory.member_index)
        grown = trajectory_bytes(trajectory) - (trajectory_bytes(replaced) if replaced else 0)
        group.members[trajectory.member_index] = trajectory
        group.size_bytes += grown
        self.size_bytes += grown

    def _refusal(self, trajectory: Trajectory, group: ArrivingGroup) -> Arrival | None:
        """Why the record does not count; None if it does."""
        held = group.members.get(trajectory.member_index)
        if held is None:
            return None
        if held.replacement == trajectory.replacement:
            return "duplicate" if _are_equal(held, trajectory) else "unequal_duplicate"
        if (trajectory.member_index, trajectory.replacement) in group.met:
            return "duplicate"
        if held.replacement > trajectory.replacement:
            return "late"
        return None if self._backfill_rounds and self._is_replaceable(held) else "unneeded"

    def _end_round(self, group: ArrivingGroup, now_s: float) -> bool:
        """The group has what it has asked for, or waits no longer for it: ready (True), or another round."""
        if group.key not in self._open:
            return False
        wanted = self._replacements(group) if group.is_train and group.rounds < self._backfill_rounds else {}
        if wanted:
            group.rounds += 1
            group.wanted, group.known_since_s = wanted, now_s
            return False
        self._ready[group.key] = self._open.pop(group.key)
        return True

    def _replacements(self, group: ArrivingGroup) -> dict[int, int]:
        """The next replacement of each member that lacks a usable record, as far as the rounds allow."""
        wanted: dict[int, int] = {}
        for member in range(group.group_size):
            held = group.members.get(member)
            if held is not None and not self._is_replaceable(held):
                continue
            number = max(group.rounds, held.replacement if held else 0) + 1
            if number <= self._backfill_rounds:
                wanted[member] = number
        return wanted

    def _give_up_waiting(self, group: ArrivingGroup, now_s: float) -> None:
        group.is_overdue = self._end_round(group, now_s)

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
