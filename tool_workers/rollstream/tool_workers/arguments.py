"""The arguments of a call, as a model wrote them: one JSON object, and nothing that two readers could read differently.

Refused, with what is wrong and where: anything but an object, keys that come twice, NaN and infinities, numbers beyond
what a double holds, half of a surrogate pair, nesting that would exhaust a parser, more values than are read while
others can wait. Nothing is repaired. Linear in the length of the text, and some tens of milliseconds at most.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any, cast

from rollstream.schemas.errors import RollstreamError

MAX_ARGUMENTS_CHARS = 1_000_000
MAX_DEPTH = 64
MAX_VALUES = 50_000
MAX_DIGITS = 400
SHOWN_CHARS = 40

_STRINGS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class InvalidArgumentsError(RollstreamError):
    """The arguments are not what the tool asks for; says what is wrong and where, for the model to read."""


def parse_object(text: str) -> dict[str, Any]:
    """The object that the text is.

    Raises:
        InvalidArgumentsError: it is none.
    """
    if len(text) > MAX_ARGUMENTS_CHARS:
        raise InvalidArgumentsError(f"the arguments are {len(text)} characters, at most {MAX_ARGUMENTS_CHARS}")
    if (surrogate := _SURROGATE.search(text)) is not None:
        raise InvalidArgumentsError(f"half of a surrogate pair at character {surrogate.start()}, which is no character")
    _check_shape(text)
    try:
        value: object = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidArgumentsError(
            f"not valid JSON: {error.msg.removesuffix(' at')} at character {error.pos}, near {_near(text, error.pos)}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentsError(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidArgumentsError(f"expected one JSON object, got {_kind(value)}")
    _check_characters("", cast("object", value))
    return cast("dict[str, Any]", value)


def _check_shape(text: str) -> None:
    text = _STRINGS.sub("", text)
    depth, values = 0, text.count(",")
    for bracket in _BRACKETS.finditer(text):
        depth += 1 if bracket[0] in "[{" else -1
        values += bracket[0] in "[{"
        if depth > MAX_DEPTH:
            raise InvalidArgumentsError(f"nested more than {MAX_DEPTH} levels deep")
        if values > MAX_VALUES:
            raise InvalidArgumentsError(f"more than {MAX_VALUES} values: give fewer, or say them in a text")
        if depth <= 0:
            return  # an object that ends, or none: the parser goes no further


def _check_characters(path: str, value: object) -> None:
    """A pair of escapes may still be half of a surrogate pair."""
    if isinstance(value, str):
        if _SURROGATE.search(value):
            raise InvalidArgumentsError(f"{path or 'a key'} holds half of a surrogate pair, which is no character")
    elif isinstance(value, list):
        for number, item in enumerate(cast("list[object]", value)):
            _check_characters(f"{path}[{number}]", item)
    elif isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            _check_characters("", key)
            _check_characters(f"{path}.{key}"[:SHOWN_CHARS] if path else f"field {key[:SHOWN_CHARS]!r}", item)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:SHOWN_CHARS]!r} comes twice")
    return made


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:SHOWN_CHARS]} is too large")
    return number


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits is too large")
    return int(text)


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _near(text: str, position: int) -> str:
    return repr(text[max(0, position - SHOWN_CHARS // 2) : position + SHOWN_CHARS // 2])


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    return "an array" if isinstance(value, list) else "a string" if isinstance(value, str) else "a number"


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=_constant)
