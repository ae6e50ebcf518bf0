"""How a task ends, as the journal keeps it: the record of its trajectory, encoded once and published from there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from rollstream.schemas.codec import decode, encode
from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.ids import group_partition
from rollstream.schemas.journal import TerminalRecord
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.message_size import large_parts_bytes
from rollstream.transport.publisher import THREAD_ABOVE_BYTES

UNPUBLISHED = TerminalRecord(value=None, headers=[], key="", partition=-1, status="failed")
"""Of a task whose body cannot be read: its letter is all there is to say."""


@dataclass(frozen=True, slots=True)
class TerminalRecords:
    """Makes them.

    Attributes:
        topic: full name of `trajectories`.
        partitions: it has.
        max_value_bytes: what its records may have.
    """

    topic: str
    partitions: int
    max_value_bytes: int

    async def of(self, trajectory: Trajectory) -> TerminalRecord:
        """The record that every publication of this trajectory will be, byte for byte.

        Raises:
            InvalidMessageError: it breaks a rule, or is too large for its topic.
        """
        is_large = large_parts_bytes(trajectory) > THREAD_ABOVE_BYTES
        record = await asyncio.to_thread(encode, trajectory) if is_large else encode(trajectory)
        if len(record.value) > self.max_value_bytes:
            raise InvalidMessageError(
                f"trajectory {trajectory.trajectory_id!r} has {len(record.value)} bytes, at most "
                f"{self.max_value_bytes} are allowed; shorten the episode limits, or raise max.message.bytes of the "
                "topic"
            )
        return TerminalRecord(
            value=record.value,
            headers=record.headers,
            key=trajectory.group_id,
            partition=group_partition(trajectory.group_id, self.partitions),
            status=trajectory.status,
        )


def read_trajectory(end: TerminalRecord) -> Trajectory:
    """The trajectory of a record that has one."""
    return decode(end.value, end.headers, Trajectory)
