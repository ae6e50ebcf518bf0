"""What a server says it offers, made fit to be shown to a model, or refused by name. Pure.

Names must be plain; descriptions are cleaned and capped; of a schema nothing is changed but its descriptions, so a
schema with invisible characters elsewhere is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from rollstream.schemas.errors import SettingsError
from rollstream.tool_workers.output_text import cap, clean

MAX_TOOLS = 128
MAX_DESCRIPTION_CHARS = 2000
MAX_SCHEMA_BYTES = 16 * 1024
MAX_SCHEMA_DEPTH = 24
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
TEXTS = frozenset({"description", "title", "$comment"})
"""Keywords of a schema that are read by people and models only."""


@dataclass(frozen=True)
class Offer:
    """One tool of a server: ``name`` is what models call it, ``own_name`` what the server does."""

    name: str
    own_name: str
    description: str
    schema: dict[str, Any]


def read_offers(
    server: str, listed: Sequence[Mapping[str, Any]], *, prefix: str, wanted: Sequence[str] | None
) -> list[Offer]:
    """The tools of a listing that are wanted, in the server's order.

    Raises:
        SettingsError: one of them cannot be offered, or one that is wanted is missing; names it.
    """
    chosen = [entry for entry in listed if wanted is None or entry.get("name") in wanted]
    if len(chosen) > MAX_TOOLS:
        raise SettingsError(
            f"MCP server {server!r} has {len(chosen)} tools, at most {MAX_TOOLS}: choose some with mcp.{server}.tools"
        )
    offers = [_offer(server, entry, prefix) for entry in chosen]
    known = [offer.own_name for offer in offers]
    if missing := [name for name in wanted or () if name not in known]:
        shown = [clean(str(entry.get("name")))[:64] for entry in listed[:MAX_TOOLS]]
        raise SettingsError(f"mcp.{server}.tools: the server has no {missing}; it has {shown}")
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise SettingsError(f"MCP server {server!r} offers {twice} more than once")
    if not offers:
        raise SettingsError(f"MCP server {server!r} offers no tool")
    return offers


def _offer(server: str, entry: Mapping[str, Any], prefix: str) -> Offer:
    own_name = entry.get("name")
    name = f"{prefix}{own_name}"
    if not isinstance(own_name, str) or not NAME.fullmatch(own_name) or not NAME.fullmatch(name):
        raise SettingsError(
            f"MCP server {server!r} offers a tool named {clean(str(own_name))[:100]!r} (here {clean(name)[:100]!r}): "
            f"a name is 1 to 64 of A-Z, a-z, 0-9, _ and -; leave it out with mcp.{server}.tools"
        )
    description, _ = cap(clean(str(entry.get("description") or "")).strip(), MAX_DESCRIPTION_CHARS)
    problem, schema = _schema(entry.get("inputSchema"))
    if problem is not None:
        raise SettingsError(
            f"MCP server {server!r}, tool {own_name!r}: {problem}; leave it out with mcp.{server}.tools"
        )
    return Offer(name, own_name, description or own_name, schema)


def _schema(given: object) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with the schema, and the schema as it is shown."""
    if not isinstance(given, dict):
        return "its schema is no object", {}
    schema = cast("dict[str, Any]", given)
    if schema.get("type") != "object":
        return 'its schema is not of "type": "object"', {}
    try:
        cleaned = cast("dict[str, Any]", _cleaned(schema, MAX_SCHEMA_DEPTH))
        size = len(msgspec.json.encode(cleaned))
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        return f"its schema cannot be shown: {error}", {}
    if size > MAX_SCHEMA_BYTES:
        return f"its schema is {size} bytes, at most {MAX_SCHEMA_BYTES}", {}
    return None, cleaned


def _cleaned(value: object, depth: int) -> object:
    if depth == 0:
        raise ValueError(f"it is nested more than {MAX_SCHEMA_DEPTH} levels deep")
    if isinstance(value, dict):
        return {
            _plain(key): clean(text) if key in TEXTS and isinstance(text, str) else _cleaned(text, depth - 1)
            for key, text in cast("dict[object, object]", value).items()
        }
    if isinstance(value, list):
        return [_cleaned(item, depth - 1) for item in cast("list[object]", value)]
    return _plain(value) if isinstance(value, str) else value


def _plain(text: object) -> str:
    if not isinstance(text, str) or clean(text) != text:
        raise ValueError(f"{clean(str(text))[:60]!r} holds invisible characters")
    return text
