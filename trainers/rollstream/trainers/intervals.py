"""A set of non-negative integers that is mostly one run: groups close nearly in order, so it stays a few pairs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class IntervalSet:
    """Half-open intervals, disjoint, not touching, ascending."""

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in intervals:
            if start < 0 or end <= start or (self._ends and start <= self._ends[-1]):
                raise ValueError(f"intervals must be ascending, apart and not empty, got ({start}, {end})")
            self._starts.append(start)
            self._ends.append(end)

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self._starts, number) - 1
        return index >= 0 and number < self._ends[index]

    def __len__(self) -> int:
        return sum(end - start for start, end in self.intervals())

    def intervals(self) -> list[tuple[int, int]]:
        """The set as ``[start, end)`` pairs."""
        return list(zip(self._starts, self._ends, strict=True))

    def add(self, number: int) -> None:
        """Add one number; a number that is there changes nothing."""
        if number in self:
            return
        index = bisect_right(self._starts, number)
        joins_left = index > 0 and self._ends[index - 1] == number
        joins_right = index < len(self._starts) and self._starts[index] == number + 1
        if joins_left and joins_right:
            self._ends[index - 1] = self._ends.pop(index)
            del self._starts[index]
        elif joins_left:
            self._ends[index - 1] = number + 1
        elif joins_right:
            self._starts[index] = number
        else:
            self._starts.insert(index, number)
            self._ends.insert(index, number + 1)

    def missing(self, start: int, end: int) -> Iterator[int]:
        """Numbers of ``[start, end)`` that are not in the set, ascending. The set may be changed meanwhile."""
        for low, high in [*self.intervals(), (end, end)]:
            yield from range(start, min(low, end))
            start = max(start, high)
