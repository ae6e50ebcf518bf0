"""Whether what came back is what was expected. Pure; on plain values only, in the worker and never in a sandbox.

What came back is hostile. Work is linear in its size; where members may come in any order, ``MAX_STEPS`` more are
taken at most, and then it is the same only if that is known by then.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

VALUE_TOLERANCE = 1e-9
OUTPUT_TOLERANCE = 1e-6
MAX_STEPS = 200_000
"""About 0.2 s."""
STEPS_PER_NODE = 16
MAX_NUMBER_CHARS = 400
"""A longer word is a word."""
LEAVES_TO_SORT_BY = 8
Comparison = Literal["exact", "tokens", "float"]

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


class UndecidedError(Exception):
    """Too many members are too much alike to say which is which."""


def same_value(expected: object, found: object, tolerance: float | None = None, *, unordered: bool = False) -> bool:
    """Lists and tuples are alike, numbers are equal by value, true is not 1, and a set is no list.

    Args:
        expected: made of what JSON has; sets may be in it if it comes from elsewhere.
        found: plain values; see `plain_values`.
        tolerance: relative and absolute, of every number. None: integers are exact, and of a float that is expected,
            or found where an integer is expected that no other integer is nearer to, 1e-9 is enough.
        unordered: a list may come in any order, and sets, wherever they are, stand for lists. One to one.

    Raises:
        UndecidedError: see there.
    """
    return _Values(tolerance, expected, is_unordered=unordered).same(expected, found, is_outermost=True)


def same_output(expected: str, found: str, how: Comparison, tolerance: float | None = None) -> bool:
    """``exact``: but for white space at line ends and at the end; ``tokens``: word by word; ``float``: numbers too.

    ``tolerance``: as of values, but 1e-6 if None.
    """
    if how == "exact":
        return _lines(expected) == _lines(found)
    left, right = expected.split(), found.split()
    if how == "tokens":
        return left == right
    return len(left) == len(right) and all(
        _same_word(one, other, tolerance) for one, other in zip(left, right, strict=True)
    )


class _Values:
    """One comparison, and the steps that are left to it."""

    def __init__(self, tolerance: float | None, expected: object, *, is_unordered: bool) -> None:
        self._tolerance = tolerance
        self._is_unordered = is_unordered
        self._steps_left = MAX_STEPS + STEPS_PER_NODE * _size(expected)

    def same(self, expected: object, found: object, *, is_outermost: bool = False) -> bool:
        """Whether they are."""
        self._steps_left -= 1
        if self._steps_left < 0:
            raise UndecidedError("too many of its members are too much alike to be compared in any order")
        if isinstance(expected, bool) or isinstance(found, bool) or expected is None or found is None:
            return expected is found
        if isinstance(expected, int | float) and isinstance(found, int | float):
            return _same_number(expected, found, self._tolerance, VALUE_TOLERANCE)
        if isinstance(expected, list | tuple) and isinstance(found, list | tuple):
            left, right = cast("Sequence[object]", expected), cast("Sequence[object]", found)
            if self._is_unordered and is_outermost:
                return self._same_members(left, right)
            return len(left) == len(right) and all(
                self.same(one, other) for one, other in zip(left, right, strict=True)
            )
        if isinstance(expected, dict) and isinstance(found, dict):
            wanted, given = cast("dict[Any, object]", expected), cast("dict[Any, object]", found)
            return wanted.keys() == given.keys() and all(self.same(wanted[key], given[key]) for key in wanted)
        if isinstance(found, set | frozenset):
            is_alike = isinstance(expected, set | frozenset) or (
                self._is_unordered and isinstance(expected, list | tuple)
            )
            wanted, given = cast("Iterable[object]", expected), cast("Iterable[object]", found)
            return is_alike and self._same_members(list(wanted), list(given))
        return isinstance(expected, str | bytes) and type(expected) is type(found) and expected == found

    def _same_members(self, expected: Sequence[object], found: Sequence[object]) -> bool:
        """Whether each has a partner of its own. Most have one of the same sketch, or of the same place in order."""
        if len(expected) != len(found):
            return False
        partners = self._equals(expected, found)
        self._pair_neighbours(expected, found, partners)
        return _is_completed(len(found), partners, lambda one, other: self.same(expected[one], found[other]))

    def _equals(self, expected: Sequence[object], found: Sequence[object]) -> dict[int, int]:
        """Pairs of places whose members have the same sketch, and are the same."""
        order_counts = not any(_holds_set(each) for each in found)
        places: dict[int, list[int]] = defaultdict(list)
        for place, member in enumerate(found):
            places[self._sketch(member, order_counts)].append(place)
        partners: dict[int, int] = {}
        for place, member in enumerate(expected):
            alike = places.get(self._sketch(member, order_counts), [])
            for at in range(len(alike) - 1, -1, -1):
                if self.same(member, found[alike[at]]):
                    partners[place] = alike.pop(at)
                    break
        return partners

    def _sketch(self, value: object, order_counts: bool) -> int:
        """The same for equal values. Others may share it: whoever answers may choose numbers with the same hash."""
        if isinstance(value, bool):
            return hash(("bool", value))
        if isinstance(value, list | tuple | set | frozenset):
            parts = [self._sketch(each, order_counts) for each in cast("Iterable[object]", value)]
        elif isinstance(value, dict):
            entries = cast("dict[object, object]", value).items()
            parts = sorted(hash((key, self._sketch(each, order_counts))) for key, each in entries)
        else:
            return hash(value)
        self._steps_left -= len(parts)
        return hash(tuple(parts if order_counts else sorted(parts)))

    def _pair_neighbours(self, expected: Sequence[object], found: Sequence[object], partners: dict[int, int]) -> None:
        """Numbers that are nearly equal come in the same order on both sides, or nearly so."""
        taken = set(partners.values())
        left = sorted((_leaves(each), place) for place, each in enumerate(expected) if place not in partners)
        right = sorted((_leaves(each), place) for place, each in enumerate(found) if place not in taken)
        at_left = at_right = 0
        while at_left < len(left) and at_right < len(right):
            (one, place), (other, other_place) = left[at_left], right[at_right]
            if self.same(expected[place], found[other_place]):
                partners[place] = other_place
                at_left, at_right = at_left + 1, at_right + 1
            elif one <= other:
                at_left += 1
            else:
                at_right += 1


def _is_completed(count: int, partners: dict[int, int], is_same: Callable[[int, int], bool]) -> bool:
    """Whether these pairs can be changed and added to until all of ``count`` have one: by augmenting paths."""
    owners = {other: one for one, other in partners.items()}
    for start in range(count):
        if start in partners:
            continue
        came_from, end = _path(start, range(count), owners, is_same)
        if end is None:
            return False
        while end is not None:
            one = came_from[end]
            before = partners.get(one)
            partners[one], owners[end] = end, one
            end = before
    return True


def _path(
    start: int, others: Iterable[int], owners: Mapping[int, int], is_same: Callable[[int, int], bool]
) -> tuple[dict[int, int], int | None]:
    """From ``start`` to one of the others that has no owner, over owners that could have another: who reached whom."""
    came_from: dict[int, int] = {}
    waiting = [start]
    unreached = list(others)
    for one in waiting:
        reached = [other for other in unreached if is_same(one, other)]
        came_from.update(dict.fromkeys(reached, one))
        end = next((other for other in reached if other not in owners), None)
        if end is not None:
            return came_from, end
        waiting.extend(owners[other] for other in reached)
        unreached = [other for other in unreached if other not in came_from]
    return came_from, None


def _same_number(expected: float, found: float, tolerance: float | None, default: float) -> bool:
    if expected == found:
        return True
    if tolerance is None and isinstance(expected, int) and not _is_nearest(expected, found):
        return False
    margin = default if tolerance is None else tolerance
    try:
        return margin > 0 and math.isclose(expected, found, rel_tol=margin, abs_tol=margin)
    except OverflowError:
        return False


def _is_nearest(expected: int, found: float) -> bool:
    return isinstance(found, float) and math.isfinite(found) and round(found) == expected


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return cast("dict[object, object]", value).values()
    if isinstance(value, list | tuple | set | frozenset):
        return cast("Iterable[object]", value)
    return ()


def _size(value: object) -> int:
    return 1 + sum(_size(each) for each in _parts(value))


def _holds_set(value: object) -> bool:
    return isinstance(value, set | frozenset) or any(_holds_set(each) for each in _parts(value))


def _leaves(value: object) -> list[tuple[int, Any]]:
    """What to sort by: the first numbers and texts in it."""
    leaves: list[tuple[int, Any]] = []
    for leaf in _walk(value):
        if isinstance(leaf, int | float):
            leaves.append((0, leaf))
        elif isinstance(leaf, str):
            leaves.append((1, leaf))
        if len(leaves) == LEAVES_TO_SORT_BY:
            break
    return leaves


def _walk(value: object) -> Iterator[object]:
    yield value
    for part in _parts(value):
        yield from _walk(part)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _same_word(one: str, other: str, tolerance: float | None) -> bool:
    if one == other:
        return True
    expected, found = _number(one), _number(other)
    return expected is not None and found is not None and _same_number(expected, found, tolerance, OUTPUT_TOLERANCE)


def _number(word: str) -> float | None:
    """Of a finite number in plain digits; None if it is anything else."""
    if len(word) > MAX_NUMBER_CHARS or _NUMBER.fullmatch(word) is None:
        return None
    if word.lstrip("+-").isdigit():
        return int(word)
    number = float(word)
    return number if math.isfinite(number) else None
