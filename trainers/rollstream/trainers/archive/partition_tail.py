"""The part of a partition that is not written yet: what belongs in it, and when it is due. Pure.

What is taken in is a function of the log and of the newest part, so two archivers take in the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.archive.archived_ids import ArchivedIds
from rollstream.trainers.archive.part_encoding import Placed
from rollstream.trainers.archive.parts import PartHeader
from rollstream.trainers.trajectory_sizes import trajectory_bytes


@dataclass(frozen=True, slots=True)
class PartLimits:
    """A part is due at the first of these."""

    rows: int
    size_bytes: float
    age_s: float


@dataclass(slots=True)
class PartitionTail:
    """What lies behind the newest part.

    Attributes:
        first_offset: where the next part begins.
        next_offset: of the record to take in next.
        archived: everything in the parts, and what is held.
        since_s: when the first record of this part was taken in; None: there is none.
    """

    topic: str
    partition: int
    first_offset: int
    archived: ArchivedIds = field(default_factory=ArchivedIds)
    next_offset: int = -1
    held: list[Placed] = field(default_factory=list[Placed])
    rows: int = 0
    size_bytes: int = 0
    duplicates: int = 0
    undecodable: int = 0
    since_s: float | None = None

    def __post_init__(self) -> None:
        self.next_offset = max(self.next_offset, self.first_offset)

    @classmethod
    def behind(cls, newest: PartHeader) -> PartitionTail:
        """What lies behind a part that is there."""
        archived = ArchivedIds.decode(newest.archived_ids)
        return cls(newest.topic, newest.partition, newest.end_offset, archived)

    def add(self, trajectory: Trajectory | None, offset: int, now_s: float) -> None:
        """Take in the record at ``offset``; None: it is no trajectory. What was taken in is old."""
        if offset < self.next_offset:
            return
        self.next_offset = offset + 1
        if self.since_s is None:
            self.since_s = now_s
        if trajectory is None:
            self.undecodable += 1
        elif trajectory in self.archived:
            self.duplicates += 1
        else:
            self.archived.add(trajectory)
            self.held.append((offset, trajectory))
            self.rows += max(1, len(trajectory.samples))
            self.size_bytes += trajectory_bytes(trajectory)

    def is_due(self, limits: PartLimits, now_s: float) -> bool:
        """Whether the part is to be written now. One of nothing but copies is due by its age, so that it ends."""
        if self.since_s is None:
            return False
        is_full = self.rows >= limits.rows or self.size_bytes >= limits.size_bytes
        return is_full or now_s - self.since_s >= limits.age_s

    @property
    def has_news(self) -> bool:
        """Whether there is anything that the parts do not cover."""
        return self.next_offset > self.first_offset

    def header(self) -> PartHeader:
        """Of the part as it would be written now."""
        return PartHeader(
            topic=self.topic,
            partition=self.partition,
            first_offset=self.first_offset,
            end_offset=self.next_offset,
            trajectories=len(self.held),
            rows=self.rows,
            duplicates=self.duplicates,
            undecodable=self.undecodable,
            archived_ids=self.archived.encode(),
        )

    def lost_until(self, offset: int) -> PartHeader:
        """Of an empty part for a stretch that is gone."""
        return PartHeader(
            topic=self.topic,
            partition=self.partition,
            first_offset=self.first_offset,
            end_offset=offset,
            is_lost=True,
            archived_ids=self.archived.encode(),
        )

    def written(self) -> None:
        """The part is there: what comes belongs to the next."""
        self.first_offset = self.next_offset
        self.held = []
        self.rows = self.size_bytes = self.duplicates = self.undecodable = 0
        self.since_s = None
