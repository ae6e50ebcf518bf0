"""Which records are scored together: each alone, or all members of a group. Pure; knows no Kafka and no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rollstream.schemas.trajectories import Trajectory

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Held(Generic[P]):
    """A trajectory that was taken on, and where it lies."""

    trajectory: Trajectory
    place: P


@dataclass(frozen=True, slots=True)
class Bundle(Generic[P]):
    """What is scored together: ``members`` by member index, each id once; ``copies`` are further records of them."""

    members: tuple[Held[P], ...]
    copies: tuple[Held[P], ...] = ()
    is_complete: bool = True


@dataclass(slots=True)
class _Waiting(Generic[P]):
    since_s: float
    size: int
    members: dict[str, Held[P]] = field(default_factory=dict[str, "Held[P]"])
    copies: list[Held[P]] = field(default_factory=list["Held[P]"])

    @property
    def is_complete(self) -> bool:
        return len({held.trajectory.member_index for held in self.members.values()}) >= self.size

    def bundle(self) -> Bundle[P]:
        ordered = sorted(self.members.values(), key=lambda held: held.trajectory.member_index)
        return Bundle(tuple(ordered), tuple(self.copies), self.is_complete)


class GroupCollector(Generic[P]):
    """Groups whose members have not all come. Members count in any status.

    Args:
        deadline_s: a group is scored this long after its first member came, with the members that are there. Members
            that come later are a group of their own.
    """

    def __init__(self, *, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._groups: dict[str, _Waiting[P]] = {}

    def add(self, held: Held[P], now_s: float) -> Bundle[P] | None:
        """Take a member on; the bundle if its group is complete now. ``now_s`` of any clock that never goes back.

        A replacement whose group has gone on without it is a bundle of its own at once: nobody else will come.
        """
        trajectory = held.trajectory
        if trajectory.replacement > 0 and trajectory.group_id not in self._groups:
            return Bundle((held,), is_complete=False)
        group = self._groups.setdefault(trajectory.group_id, _Waiting(now_s, trajectory.group_size))
        if trajectory.trajectory_id in group.members:
            group.copies.append(held)
            return None
        group.members[trajectory.trajectory_id] = held
        return self._take(trajectory.group_id) if group.is_complete else None

    def overdue(self, now_s: float) -> list[Bundle[P]]:
        """Groups whose deadline is over, the one that waited longest first."""
        due = [key for key, group in self._groups.items() if now_s - group.since_s >= self._deadline_s]
        return [self._take(key) for key in due]

    def oldest(self) -> Bundle[P] | None:
        """The group that has waited longest, as it is: when there is no room for the members it lacks."""
        return self._take(next(iter(self._groups))) if self._groups else None

    def forget(self, is_lost: Callable[[P], bool]) -> list[Held[P]]:
        """Drop what others work on now; returns it."""
        lost: list[Held[P]] = []
        for key, group in list(self._groups.items()):
            held = [*group.members.values(), *group.copies]
            lost += [each for each in held if is_lost(each.place)]
            group.members, group.copies = {}, []
            for each in held:
                if is_lost(each.place):
                    continue
                if group.members.setdefault(each.trajectory.trajectory_id, each) is not each:
                    group.copies.append(each)
            if not group.members:
                del self._groups[key]
        return lost

    def __len__(self) -> int:
        return len(self._groups)

    def _take(self, key: str) -> Bundle[P]:
        return self._groups.pop(key).bundle()
