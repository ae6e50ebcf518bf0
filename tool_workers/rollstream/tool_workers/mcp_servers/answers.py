"""What a server answers to a call, as text for the model. Pure; the runner cleans and caps the text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from rollstream.tool_workers.functions import ToolOutput

MAX_BLOCKS = 256
MAX_LABEL_CHARS = 200


def output_of(result: Mapping[str, Any]) -> ToolOutput:
    """A `tools/call` result: its texts joined by newlines, notes for what is no text.

    What is structured is shown as JSON if there is no text: servers say in their texts what is in it.
    """
    given = result.get("content")
    blocks = cast("list[object]", given) if isinstance(given, list) else []
    parts = [_text_of(block) for block in blocks[:MAX_BLOCKS]]
    if len(blocks) > MAX_BLOCKS:
        parts.append(f"[{len(blocks) - MAX_BLOCKS} more parts: not shown]")
    structured = result.get("structuredContent")
    if structured is not None and not any(_is_text(block) for block in blocks[:MAX_BLOCKS]):
        parts.append(json.dumps(structured, ensure_ascii=False))
    text = "\n".join(parts) or "(no output)"
    if result.get("isError") is True:
        return ToolOutput(f"Error: {text}", "error")
    return ToolOutput(text)


def _is_text(block: object) -> bool:
    return isinstance(block, dict) and cast("dict[str, Any]", block).get("type") == "text"


def _text_of(block: object) -> str:
    if not isinstance(block, dict):
        return "[a part of no known kind: not shown]"
    fields = cast("dict[str, Any]", block)
    kind = fields.get("type")
    if kind == "text":
        return str(fields.get("text", ""))
    if kind in ("image", "audio"):
        return f"[{kind}, {_label(fields.get('mimeType'))}, {_size(fields.get('data'))}: not shown]"
    if kind == "resource_link":
        return f"[resource {_label(fields.get('uri'))}: {_label(fields.get('name'))}]"
    if kind == "resource" and isinstance(fields.get("resource"), dict):
        resource = cast("dict[str, Any]", fields["resource"])
        if isinstance(resource.get("text"), str):
            return f"[resource {_label(resource.get('uri'))}]\n{resource['text']}"
        return f"[resource {_label(resource.get('uri'))}, {_size(resource.get('blob'))}: not shown]"
    return f"[a part of kind {_label(kind)}: not shown]"


def _label(value: object) -> str:
    text = "unnamed" if value is None else " ".join(str(value).split())
    return text if len(text) <= MAX_LABEL_CHARS else f"{text[:MAX_LABEL_CHARS]}..."


def _size(data: object) -> str:
    """Of what base64 stands for."""
    return f"{len(data) * 3 // 4} bytes" if isinstance(data, str) else "no data"
