"""JSON Schemas of all messages, for readers in other languages and for people.

They describe the JSON view of a message: arrays as lists of numbers, binaries as base64 text. How the same fields lie
in a record is in `docs/wire-format.md`.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np

from rollstream.schemas.messages import SCHEMA_VERSION, Message
from rollstream.schemas.registry import MESSAGES


def json_view(message: Message) -> Any:
    """The message as plain JSON values, valid under its schema."""
    return json.loads(msgspec.json.encode(message, enc_hook=_as_list))


def json_schemas() -> dict[str, dict[str, Any]]:
    """One schema per message by name, each complete in itself."""
    return {message.__name__: _schema(message) for message in MESSAGES}


def write_json_schemas(directory: Path) -> list[Path]:
    """Write ``<name>.json`` for every message; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name, schema in json_schemas().items():
        path = directory / f"{name}.json"
        path.write_text(_text(schema), encoding="utf-8")
        paths.append(path)
    return paths


def differing_json_schemas(directory: Path) -> list[str]:
    """What is wrong with a directory of schemas, one sentence per file; empty when all is as the code says."""
    expected = {f"{name}.json": _text(schema) for name, schema in json_schemas().items()}
    found = {path.name: path.read_text(encoding="utf-8") for path in sorted(directory.glob("*.json"))}
    missing = [f"{name} is missing" for name in expected if name not in found]
    changed = [
        f"{name} differs from the code" for name in expected if found.get(name, expected[name]) != expected[name]
    ]
    return [*missing, *changed, *(f"{name} describes no message" for name in found if name not in expected)]


def _schema(message: type[Message]) -> dict[str, Any]:
    (reference,), components = msgspec.json.schema_components([message], ref_template="#/$defs/{name}")
    for name, struct in _structs(message).items():
        components[name]["description"] = inspect.cleandoc(struct.__doc__ or "")
        _describe_fields(components[name], struct)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "x-topic": message.topic,
        "x-schema-version": SCHEMA_VERSION,
        **reference,
        "$defs": dict(sorted(components.items())),
    }


def _structs(root: type[Any]) -> dict[str, type[msgspec.Struct]]:
    """All structs reachable from a message, by name."""
    found: dict[str, type[msgspec.Struct]] = {}
    waiting: list[Any] = [root]
    while waiting:
        annotation = waiting.pop()
        waiting.extend(get_args(annotation))
        if inspect.isclass(annotation) and issubclass(annotation, msgspec.Struct) and annotation.__name__ not in found:
            found[annotation.__name__] = annotation
            waiting.extend(field.type for field in msgspec.structs.fields(annotation))
    return found


def _describe_fields(schema: dict[str, Any], struct: type[msgspec.Struct]) -> None:
    descriptions = _attribute_docstrings(struct)
    for name, field in schema.get("properties", {}).items():
        if name in descriptions:
            field["description"] = descriptions[name]


def _attribute_docstrings(struct: type) -> dict[str, str]:
    """The string literals under a class's fields."""
    body = ast.parse(textwrap.dedent(inspect.getsource(struct))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            value = text.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[field.target.id] = " ".join(value.value.split())
    return found


def _as_list(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"cannot show {type(value).__name__} as JSON")


def _text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
