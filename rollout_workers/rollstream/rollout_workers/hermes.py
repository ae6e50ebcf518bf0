"""Tool calls in the Hermes form: one JSON object with ``name`` and ``arguments`` between the tool_call tags.

Invariants: three outcomes, never an exception; time linear in the text; what is returned can be written as UTF-8 JSON
and read back unchanged. A turn with one malformed call asks for nothing: none of its calls runs.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, cast

from rollstream.rollout_workers.chat_format import ParsedCall, ParsedTurn

MAX_DEPTH = 64
"""Nesting of a call's JSON. Deeper text is garbage, and recursive readers behind us would fail on it."""
MAX_DIGITS = 400
"""Characters of one number. Above it Python's own conversion is quadratic, and JSON readers overflow."""

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

_TAG = re.compile("|".join(map(re.escape, (CALL_OPEN, CALL_CLOSE, THINK_OPEN, THINK_CLOSE))))
_BLANKS = re.compile(r"[ \t\n\r]*+")
# An unclosed string matches too: otherwise each escaped quote in it would start another scan to the end.
_BRACKET_OR_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[{}\[\]]', re.DOTALL)


class _MalformedCall(Exception):
    """Leaves the reader with a reason; never leaves this module."""


def parse_hermes(text: str, *, is_thinking: bool = False) -> ParsedTurn:
    """Read the tool calls of one turn.

    Calls inside a think block are ignored, also in one that the generation prompt opened (``is_thinking``, or a closing
    tag without an opening one). A think block that never ends makes a call inside it malformed.
    """
    try:
        calls = _read_calls(text, is_thinking)
    except _MalformedCall as malformed:
        return ParsedTurn("malformed", reason=str(malformed))
    return ParsedTurn("calls", tuple(calls)) if calls else ParsedTurn("none")


def _read_calls(text: str, is_thinking: bool) -> list[ParsedCall]:
    calls: list[ParsedCall] = []
    position = _after_thinking(text, 0) if is_thinking else 0
    while (tag := _TAG.search(text, position)) is not None:
        position = tag.end()
        match tag.group():
            case "<tool_call>":
                call, position = _read_call(text, position)
                calls.append(call)
            case "<think>":
                position = _after_thinking(text, position)
            case "</think>":
                calls.clear()
            case _:
                raise _MalformedCall("a closing tool_call tag without an opening one")
    return calls


def _after_thinking(text: str, position: int) -> int:
    end = text.find(THINK_CLOSE, position)
    if end >= 0:
        return end + len(THINK_CLOSE)
    if text.find(CALL_OPEN, position) >= 0:
        raise _MalformedCall("the think block around the tool call is not closed")
    return len(text)


def _read_call(text: str, position: int) -> tuple[ParsedCall, int]:
    start = _skip_blanks(text, position)
    call, end = _read_object(text, start, "the tool call")
    end = _skip_blanks(text, end)
    if not text.startswith(CALL_CLOSE, end):
        is_cut = end == len(text)
        raise _MalformedCall(
            "the tool_call tag is not closed" if is_cut else "text between the JSON and the closing tag"
        )
    return _checked_call(call), end + len(CALL_CLOSE)


def _checked_call(call: dict[str, Any]) -> ParsedCall:
    name = call.get("name")
    if not isinstance(name, str) or not name:
        raise _MalformedCall("'name' must be a string that is not empty")
    if "arguments" not in call:
        raise _MalformedCall("'arguments' is missing")
    arguments = call["arguments"]
    if isinstance(arguments, str):
        arguments, _ = _read_object(arguments, _skip_blanks(arguments, 0), "the string in 'arguments'", whole=True)
    if not isinstance(arguments, dict):
        raise _MalformedCall(f"'arguments' must be a JSON object, not {_json_type(arguments)}")
    arguments_json = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        (name + arguments_json).encode()
    except UnicodeEncodeError:
        raise _MalformedCall("half of a surrogate pair in a string") from None
    return ParsedCall(name, arguments_json)


def _read_object(text: str, start: int, what: str, *, whole: bool = False) -> tuple[dict[str, Any], int]:
    if not text.startswith("{", start):
        raise _MalformedCall(f"{what} is not a JSON object")
    end = _object_end(text, start)
    if whole and _skip_blanks(text, end) != len(text):
        raise _MalformedCall(f"{what} is not one JSON object")
    try:
        return cast("dict[str, Any]", _DECODER.decode(text[start:end])), end
    except json.JSONDecodeError as error:
        raise _MalformedCall(f"invalid JSON: {error.msg} at character {error.pos}") from None


def _object_end(text: str, start: int) -> int:
    depth = 0
    for piece in _BRACKET_OR_STRING.finditer(text, start):
        match text[piece.start()]:
            case "{" | "[":
                depth += 1
                if depth > MAX_DEPTH:
                    raise _MalformedCall(f"JSON nested deeper than {MAX_DEPTH}")
            case "}" | "]":
                depth -= 1
                if depth == 0:
                    return piece.end()
            case _:
                pass
    raise _MalformedCall("the JSON object is not closed")


def _skip_blanks(text: str, position: int) -> int:
    blanks = _BLANKS.match(text, position)
    return blanks.end() if blanks else position


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case _:
            return "an array"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise _MalformedCall("a key occurs twice in one JSON object")
    return unique


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _MalformedCall(f"a number of more than {MAX_DIGITS} digits")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits) if len(digits) <= MAX_DIGITS else float("inf")
    if value in (float("inf"), float("-inf")):
        raise _MalformedCall("a number out of range")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _MalformedCall(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_int=_integer, parse_float=_real, parse_constant=_refuse_constant
)
