"""Which offset of a partition may be committed when records finish in any order. Pure; knows no Kafka and no clock."""

from __future__ import annotations

import heapq


class OffsetTracker:
    """The records of one partition that this owner has begun and not finished.

    Invariant: everything below ``committable`` is finished, whatever finished above it. A record delivered again (after
    a rebalance that left the partition here) is recognised, because offsets are delivered in rising order.
    """

    def __init__(self) -> None:
        self._unfinished: set[int] = set()
        self._lowest_first: list[int] = []
        self._next_offset: int | None = None
        self.starts_at: int | None = None
        """Where reading begins, if known: what lies below was finished when this owner took the partition on."""
        self._may_jump = False

    def begin(self, offset: int) -> bool:
        """Take a record on. False if it has been taken on before: drop it, it is running or finished.

        So is what lies below ``starts_at``: a former owner that comes to life again may commit less than was committed
        when this one asked, and then Kafka delivers it.
        """
        if self._next_offset is not None and offset < self._next_offset:
            return False
        self._next_offset = offset + 1
        if self.starts_at is not None and offset < self.starts_at:
            return False
        self._unfinished.add(offset)
        heapq.heappush(self._lowest_first, offset)
        return True

    def missing_before(self, offset: int) -> int:
        """How many records between the last one and this one are not there any more; ask before ``begin``."""
        expected = self.starts_at if self._next_offset is None else self._next_offset
        if self._may_jump:
            self._may_jump, expected = False, None
        return 0 if expected is None else max(0, offset - expected)

    def rejoined(self) -> None:
        """The partition has stayed over a rebalance: others may have worked on it and committed meanwhile."""
        self._may_jump = True

    def finish(self, offset: int) -> None:
        """The record needs no more work. Safe to repeat."""
        self._unfinished.discard(offset)

    @property
    def next_offset(self) -> int | None:
        """Where reading goes on: after the last record taken on; None before the first."""
        return self._next_offset

    @property
    def committable(self) -> int | None:
        """The lowest unfinished offset, or the one after the last record; None before the first record."""
        while self._lowest_first and self._lowest_first[0] not in self._unfinished:
            heapq.heappop(self._lowest_first)
        return self._lowest_first[0] if self._lowest_first else self._next_offset

    @property
    def unfinished(self) -> frozenset[int]:
        """Offsets begun and not finished."""
        return frozenset(self._unfinished)
