"""Arguments against a schema that a server wrote. Pure.

Only what cannot cost more than the arguments are long: types, enumerations, required and unknown fields. Patterns,
references and combinations are the server's to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from rollstream.tool_workers.arguments import InvalidArgumentsError

SHOWN_CHARS = 60


def check_arguments(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Return if nothing is found.

    Raises:
        InvalidArgumentsError: what is wrong and where, for the model to read.
    """
    _check("", arguments, schema)


def _check(path: str, value: object, schema: Mapping[str, Any]) -> None:
    kinds = _kinds(schema.get("type"))
    if kinds and not any(_TYPES[kind](value) for kind in kinds):
        raise InvalidArgumentsError(f"{path or 'the arguments'}: expected {' or '.join(kinds)}, got {_shown(value)}")
    choices = schema.get("enum")
    allowed = cast("list[object]", choices) if isinstance(choices, list) else [value]
    if not any(_same(value, choice) for choice in allowed):
        raise InvalidArgumentsError(f"{path or 'the arguments'}: {_shown(value)} is none of {_shown(allowed)}")
    if isinstance(value, dict):
        _check_fields(path, cast("dict[str, object]", value), schema)
    elif isinstance(value, list) and (items := _schema(schema.get("items"))) is not None:
        for number, item in enumerate(cast("list[object]", value)):
            _check(f"{path}[{number}]", item, items)


def _check_fields(path: str, fields: Mapping[str, object], schema: Mapping[str, Any]) -> None:
    required = schema.get("required")
    for name in cast("list[object]", required) if isinstance(required, list) else ():
        if isinstance(name, str) and name not in fields:
            raise InvalidArgumentsError(f"{path + ': ' if path else ''}the field {name!r} is missing")
    known = _schema(schema.get("properties")) or {}
    if schema.get("additionalProperties") is False and "patternProperties" not in schema:
        for name in fields:
            if name not in known:
                raise InvalidArgumentsError(
                    f"{path + ': ' if path else ''}unknown field {name[:SHOWN_CHARS]!r}; known: {_shown(sorted(known))}"
                )
    for name, value in fields.items():
        if (own := _schema(known.get(name))) is not None:
            _check(f"{path}.{name}" if path else name, value, own)


def _schema(value: object) -> Mapping[str, Any] | None:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else None


def _kinds(given: object) -> list[str]:
    """Known types; empty: anything goes."""
    kinds = cast("list[object]", given) if isinstance(given, list) else [given]
    known = [kind for kind in kinds if isinstance(kind, str) and kind in _TYPES]
    return known if len(known) == len(kinds) else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return _is_number(value) and (isinstance(value, int) or cast("float", value).is_integer())


_TYPES: dict[str, Callable[[object], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": _is_number,
    "integer": _is_integer,
}


def _same(value: object, choice: object) -> bool:
    """Equal as JSON: true is not 1."""
    return isinstance(value, bool) == isinstance(choice, bool) and value == choice


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
