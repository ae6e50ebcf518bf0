"""In which order the records of several partitions are taken: over the same log always the same. Pure.

The next record is the one with the oldest timestamp among the first unread ones of all partitions, so the order depends
on where reading stands in each partition and on nothing else: not on how the broker answers, nor on when a reader was
killed. A partition with more to come and nothing here is waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

READ_AHEAD_BYTES = 8 * 1024 * 1024
"""Of one partition, while another is waited for: more would not make reading faster."""


class Placed(Protocol):
    """What a record must tell."""

    @property
    def partition(self) -> int:
        """Its partition."""
        ...

    @property
    def timestamp(self) -> int:
        """When it was sent, in milliseconds."""
        ...

    @property
    def value(self) -> Sequence[int] | None:
        """Its bytes."""
        ...


R = TypeVar("R", bound=Placed)


class ReadingOrder(Generic[R]):
    """Records that were fetched and not taken. Those of one partition are put in the order of their offsets."""

    def __init__(self, partitions: Iterable[int], read_ahead_bytes: int | None = None) -> None:
        """``read_ahead_bytes``: of one partition, if less than ``READ_AHEAD_BYTES``; one fetch may go beyond it."""
        wanted = READ_AHEAD_BYTES if read_ahead_bytes is None else read_ahead_bytes
        self._read_ahead_bytes = max(1, min(wanted, READ_AHEAD_BYTES))
        self._queues: dict[int, deque[R]] = {partition: deque() for partition in sorted(partitions)}
        self._size_bytes = dict.fromkeys(self._queues, 0)

    def put(self, record: R) -> None:
        """A record was fetched."""
        self._queues[record.partition].append(record)
        self._size_bytes[record.partition] += len(record.value or b"")

    def empty(self) -> set[int]:
        """Partitions of which nothing is here."""
        return {partition for partition, queue in self._queues.items() if not queue}

    def wanted(self) -> set[int]:
        """Partitions of which more may be fetched."""
        return {partition for partition, size_bytes in self._size_bytes.items() if size_bytes < self._read_ahead_bytes}

    def take(self, awaited: Iterable[int], max_records: int) -> list[R]:
        """The next records; none beyond the point where an awaited partition has nothing here."""
        awaited = set(awaited)
        taken: list[R] = []
        while len(taken) < max_records and awaited.isdisjoint(self.empty()):
            first = min(
                (queue[0] for queue in self._queues.values() if queue),
                key=lambda record: (record.timestamp, record.partition),
                default=None,
            )
            if first is None:
                break
            self._queues[first.partition].popleft()
            self._size_bytes[first.partition] -= len(first.value or b"")
            taken.append(first)
        return taken
