"""Finding a score in what a judge said, and a number in a JSON answer. Pure."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from rollstream.schemas.errors import DataError, SettingsError

SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True)
class ScoreScale:
    """What a judge is asked for: a number from ``lowest`` to ``highest``. As a reward it is 0 … 1."""

    lowest: float = 0.0
    highest: float = 1.0

    def reward(self, value: float, said: str) -> float:
        """Where ``value`` lies between the two.

        Raises:
            DataError: it is not between them; a judge that does not keep to its scale is not believed.
        """
        if not math.isfinite(value) or not self.lowest <= value <= self.highest:
            raise DataError(f"the judge's score {value} is not within {self.lowest} to {self.highest}: {_short(said)}")
        return (value - self.lowest) / (self.highest - self.lowest)


def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern whose first group is the number.

    Raises:
        SettingsError: it is no pattern, or has no group.
    """
    try:
        built = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"score_pattern = {pattern!r} is no regular expression: {error}") from error
    if not built.groups:
        raise SettingsError(f"score_pattern = {pattern!r} has no group: put the number in parentheses")
    return built


def score_by_pattern(said: str, pattern: re.Pattern[str]) -> float:
    """The number in the last match.

    Raises:
        DataError: there is no match, or no number in it.
    """
    found = deque(pattern.finditer(said), maxlen=1)
    if not found:
        raise DataError(f"the judge's answer holds no score: {_short(said)}")
    return number(found[0][1], said)


def score_by_key(said: str, key: str) -> float:
    """The number under ``key`` in the last JSON object of the answer that has it.

    Raises:
        DataError: there is none.
    """
    decoder = json.JSONDecoder()
    start = len(said)
    while (start := said.rfind("{", 0, start)) >= 0:
        try:
            found = decoder.raw_decode(said, start)[0]
        except (ValueError, RecursionError):
            continue
        if key in found:
            return number(found[key], said)
    raise DataError(f"the judge's answer holds no JSON object with {key!r}: {_short(said)}")


def value_at(answer: object, path: str) -> float:
    """The number at a dotted path like ``data.0.score`` in decoded JSON.

    Raises:
        DataError: there is none.
    """
    here = answer
    for part in path.split("."):
        if isinstance(here, Mapping) and part in here:
            here = cast("Mapping[str, Any]", here)[part]
        elif isinstance(here, list) and part.isdecimal() and int(part) < len(cast("list[Any]", here)):
            here = cast("list[Any]", here)[int(part)]
        else:
            raise DataError(f"the answer has nothing at {path!r} (no {part!r}): {_short(json.dumps(answer))}")
    return number(here, json.dumps(answer))


def number(value: object, said: str) -> float:
    """A finite number, also one that is written as text.

    Raises:
        DataError: it is none.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(value)
        read = float(value)
    except (ValueError, OverflowError):
        raise DataError(f"{value!r} is no number: {_short(said)}") from None
    if not math.isfinite(read):
        raise DataError(f"{value!r} is not finite: {_short(said)}")
    return read


def _short(text: str) -> str:
    """For people: the end, where a judge concludes."""
    return repr(text if len(text) <= SHOWN_CHARS else f"…{text[-SHOWN_CHARS:]}")
