"""Which trajectories of a partition are archived: exactly, and small enough to stand in every part. Pure.

Ids are functions of (run, group, member, replacement), and groups are numbered densely, so what is there is intervals
of group numbers. An id that is no such function is kept as it is.
"""

from __future__ import annotations

from typing import Final

import msgspec
import zstandard

from rollstream.schemas import ids
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.intervals import IntervalSet

ZSTD_LEVEL: Final = 3


class _Groups(msgspec.Struct, array_like=True):
    """Group numbers of one member, as gaps and lengths in turn: of intervals that ascend, these are small numbers."""

    run_id: str
    member_index: int
    replacement: int
    steps: list[int]


class _Everything(msgspec.Struct, array_like=True):
    groups: list[_Groups]
    others: list[str]


class ArchivedIds:
    """A set of trajectories."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, int, int], IntervalSet] = {}
        self._others: set[str] = set()

    def __contains__(self, trajectory: Trajectory) -> bool:
        if not _is_derived(trajectory):
            return trajectory.trajectory_id in self._others
        groups = self._groups.get(_member(trajectory))
        return groups is not None and trajectory.group_index in groups

    def __len__(self) -> int:
        return sum(map(len, self._groups.values())) + len(self._others)

    def add(self, trajectory: Trajectory) -> None:
        """One that is there changes nothing."""
        if _is_derived(trajectory):
            self._groups.setdefault(_member(trajectory), IntervalSet()).add(trajectory.group_index)
        else:
            self._others.add(trajectory.trajectory_id)

    def encode(self) -> bytes:
        """The whole set: some bits for each group, as its members compress to little more than one of them."""
        groups = [_Groups(*member, _steps(found)) for member, found in sorted(self._groups.items())]
        body = msgspec.msgpack.encode(_Everything(groups, sorted(self._others)))
        return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(body)

    @classmethod
    def decode(cls, body: bytes) -> ArchivedIds:
        """What ``encode`` has made.

        Raises:
            ValueError, zstandard.ZstdError: it is something else.
        """
        everything = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(body), type=_Everything)
        archived = cls()
        archived._others = set(everything.others)
        archived._groups = {
            (groups.run_id, groups.member_index, groups.replacement): _intervals(groups.steps)
            for groups in everything.groups
        }
        return archived


def _is_derived(trajectory: Trajectory) -> bool:
    derived = ids.trajectory_id(
        trajectory.run_id, trajectory.group_index, trajectory.member_index, trajectory.replacement
    )
    return trajectory.trajectory_id == derived


def _member(trajectory: Trajectory) -> tuple[str, int, int]:
    return trajectory.run_id, trajectory.member_index, trajectory.replacement


def _steps(groups: IntervalSet) -> list[int]:
    steps: list[int] = []
    at = 0
    for start, end in groups.intervals():
        steps += [start - at, end - start]
        at = end
    return steps


def _intervals(steps: list[int]) -> IntervalSet:
    pairs: list[tuple[int, int]] = []
    at = 0
    for gap, length in zip(steps[::2], steps[1::2], strict=True):
        pairs.append((at + gap, at + gap + length))
        at += gap + length
    return IntervalSet(pairs)
