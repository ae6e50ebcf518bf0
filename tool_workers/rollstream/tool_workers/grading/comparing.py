"""Whether what came back is what was expected. Pure; on plain values only, in the worker and never in a sandbox."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

DEFAULT_TOLERANCE = 1e-9
MAX_MEMBERS = 1000
"""Of a set that is compared."""
Comparison = Literal["exact", "tokens", "float"]


def same_value(expected: object, found: object, tolerance: float = DEFAULT_TOLERANCE) -> bool:
    """Lists and tuples are alike, numbers are equal by value, true is not 1. Tolerance: relative and absolute."""
    if isinstance(expected, bool) or isinstance(found, bool) or expected is None or found is None:
        return expected is found
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return _same_number(expected, found, tolerance)
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        left, right = cast("Sequence[object]", expected), cast("Sequence[object]", found)
        return len(left) == len(right) and all(
            same_value(one, other, tolerance) for one, other in zip(left, right, strict=True)
        )
    if isinstance(expected, dict) and isinstance(found, dict):
        wanted, given = cast("dict[Any, object]", expected), cast("dict[Any, object]", found)
        return wanted.keys() == given.keys() and all(same_value(wanted[key], given[key], tolerance) for key in wanted)
    if isinstance(expected, list) and isinstance(found, set | frozenset):
        return _same_members(cast("list[object]", expected), cast("set[object]", found), tolerance)
    return isinstance(expected, str) and isinstance(found, str) and expected == found


def same_output(expected: str, found: str, how: Comparison, tolerance: float = DEFAULT_TOLERANCE) -> bool:
    """``exact``: but for white space at line ends and at the end; ``tokens``: word by word; ``float``: numbers too."""
    if how == "exact":
        return _lines(expected) == _lines(found)
    left, right = expected.split(), found.split()
    if how == "tokens":
        return left == right
    return len(left) == len(right) and all(
        _same_word(one, other, tolerance) for one, other in zip(left, right, strict=True)
    )


def _same_number(one: float, other: float, tolerance: float) -> bool:
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    try:
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:
        return False


def _same_members(expected: list[object], found: set[object] | frozenset[object], tolerance: float) -> bool:
    if len(expected) != len(found) or len(found) > MAX_MEMBERS:
        return False
    return all(any(same_value(one, other, tolerance) for other in found) for one in expected)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _same_word(one: str, other: str, tolerance: float) -> bool:
    if one == other:
        return True
    try:
        return _same_number(float(one), float(other), tolerance)
    except ValueError:
        return False
