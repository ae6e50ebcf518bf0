from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.errors import SettingsError
from rollstream.tool_workers.arguments import InvalidArgumentsError
from rollstream.tool_workers.mcp_servers.answers import output_of
from rollstream.tool_workers.mcp_servers.argument_check import check_arguments
from rollstream.tool_workers.mcp_servers.mounting import chosen_servers, secrets_of
from rollstream.tool_workers.mcp_servers.offers import MAX_DESCRIPTION_CHARS, MAX_SCHEMA_BYTES, NAME, read_offers
from rollstream.tool_workers.mcp_servers.settings import McpServerSettings, url_problem
from rollstream.tool_workers.output_text import clean

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "integer"}}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def listed(**changes: Any) -> dict[str, Any]:
    return {"name": "get", "description": "Get it.", "inputSchema": SCHEMA, **changes}


def offers_of(*entries: dict[str, Any], wanted: tuple[str, ...] | None = None) -> list[str]:
    return [offer.name for offer in read_offers("srv", entries, prefix="srv_", wanted=wanted)]


def test_only_wanted_tools_are_taken_and_others_may_be_anything() -> None:
    assert offers_of(listed(), listed(name="put"), wanted=("put",)) == ["srv_put"]
    assert offers_of(listed(), listed(name="so bad", inputSchema=7), wanted=("get",)) == ["srv_get"]


@pytest.mark.parametrize("name", ["a b", "", "a" * 62, "\u0430dmin", "a\u200bb", "x.y", None, 7])
def test_a_name_that_is_not_plain_is_refused(name: object) -> None:
    with pytest.raises(SettingsError, match="offers a tool named"):
        offers_of(listed(name=name))


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (None, "no object"),
        ({"type": "array"}, "not of"),
        ({"type": "object", "properties": {"a\u202eb": {}}}, "invisible"),
        ({"type": "object", "properties": {"a": {"enum": ["x\u200by"]}}}, "invisible"),
        ({"type": "object", "description": "y" * (MAX_SCHEMA_BYTES + 1)}, "bytes"),
    ],
)
def test_a_schema_that_cannot_be_shown_is_refused_with_the_tools_name(schema: object, told: str) -> None:
    with pytest.raises(SettingsError, match=f"tool 'get'.*{told}"):
        offers_of(listed(inputSchema=schema))


def test_a_schema_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(100):
        schema = {"type": "object", "properties": {"a": schema}}
    with pytest.raises(SettingsError, match="levels deep"):
        offers_of(listed(inputSchema=schema))


def test_too_many_missing_or_equal_tools_and_none_are_refused() -> None:
    with pytest.raises(SettingsError, match="at most 128"):
        offers_of(*(listed(name=f"t{n}") for n in range(129)))
    with pytest.raises(SettingsError, match="no \\['put'\\]"):
        offers_of(listed(), wanted=("put",))
    with pytest.raises(SettingsError, match="more than once"):
        offers_of(listed(), listed())
    with pytest.raises(SettingsError, match="offers no tool"):
        offers_of()


def test_a_schema_loses_nothing_but_invisible_characters_in_its_descriptions() -> None:
    schema = {
        "type": "object",
        "description": "x\u202ey",
        "properties": {"description": {"type": "string", "description": "\x1b[31mred"}},
        "required": ["description"],
    }
    (offer,) = read_offers("srv", [listed(inputSchema=schema)], prefix="", wanted=None)
    assert offer.schema == {
        "type": "object",
        "description": "x\\u202ey",
        "properties": {"description": {"type": "string", "description": "red"}},
        "required": ["description"],
    }


@given(st.dictionaries(st.sampled_from(["name", "description", "inputSchema", "title"]), JSON | st.just(SCHEMA)))
def test_whatever_a_server_lists_is_fit_to_be_shown_or_refused(entry: dict[str, Any]) -> None:
    try:
        (offer,) = read_offers("srv", [entry], prefix="srv_", wanted=None)
    except SettingsError:
        return
    assert NAME.fullmatch(offer.name)
    assert clean(offer.description) == offer.description
    assert len(offer.description) <= MAX_DESCRIPTION_CHARS + 100
    assert len(msgspec.json.encode(offer.schema)) <= MAX_SCHEMA_BYTES


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "'n' is missing"),
        ({"n": "1"}, "n: expected integer, got '1'"),
        ({"n": True}, "expected integer"),
        ({"n": 1.5}, "expected integer"),
        ({"n": 1, "m": 2}, "unknown field 'm'"),
        ({"n": 1, "inner": {"list": ["a", 3]}}, r"inner.list\[1\]: expected string"),
        ({"n": 1, "kind": True}, "none of"),
    ],
)
def test_arguments_that_a_schema_does_not_allow_are_told(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidArgumentsError, match=told):
        check_arguments(arguments, STRICT)


STRICT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "inner": {"type": "object", "properties": {"list": {"type": "array", "items": {"type": "string"}}}},
        "kind": {"enum": [1, "a"]},
    },
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("arguments", [{"n": 2.0}, {"n": 1, "kind": "a"}, {"n": 1, "inner": {"list": [], "x": None}}])
def test_arguments_that_a_schema_allows_pass(arguments: dict[str, Any]) -> None:
    check_arguments(arguments, STRICT)


@given(st.dictionaries(st.text(max_size=8), JSON), JSON, JSON, JSON)
def test_no_schema_of_a_server_breaks_the_check(
    arguments: dict[str, Any], kind: object, properties: object, required: object
) -> None:
    schema = {"type": kind, "properties": properties, "required": required, "items": kind, "enum": required}
    with contextlib.suppress(InvalidArgumentsError):
        check_arguments(arguments, schema)


@pytest.mark.parametrize(
    ("result", "text", "status"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb", "ok"),
        ({"content": []}, "(no output)", "ok"),
        ({"content": [], "structuredContent": {"a": "\u00e4"}}, '{"a": "\u00e4"}', "ok"),
        ({"content": [{"type": "text", "text": "1"}], "structuredContent": {"result": 1}}, "1", "ok"),
        ({"content": [{"type": "text", "text": "no"}], "isError": True}, "Error: no", "error"),
        ({"content": [{"type": "audio", "data": "QUJD", "mimeType": "a/b"}]}, "[audio, a/b, 3 bytes: not shown]", "ok"),
        (
            {"content": [{"type": "resource", "resource": {"uri": "f:a", "text": "hi"}}]},
            "[resource f:a]\nhi",
            "ok",
        ),
        (
            {"content": [{"type": "resource", "resource": {"uri": "f:a", "blob": "QUJD"}}]},
            "[resource f:a, 3 bytes: not shown]",
            "ok",
        ),
        ({"content": [{"type": "resource_link", "uri": "f:a", "name": "A"}]}, "[resource f:a: A]", "ok"),
        ({"content": [{"type": "magic"}]}, "[a part of kind magic: not shown]", "ok"),
    ],
)
def test_a_result_becomes_text(result: dict[str, Any], text: str, status: str) -> None:
    output = output_of(result)
    assert (output.content, output.status) == (text, status)


@given(st.dictionaries(st.sampled_from(["content", "structuredContent", "isError"]), JSON))
def test_whatever_a_server_answers_becomes_text(result: dict[str, Any]) -> None:
    output = output_of(result)
    assert output.content
    assert output.status in ("ok", "error")


@given(st.lists(st.dictionaries(st.sampled_from(["type", "text", "data", "uri", "resource", "name"]), JSON)))
def test_whatever_parts_a_server_answers_become_text(parts: list[dict[str, Any]]) -> None:
    assert isinstance(output_of({"content": parts}).content, str)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://a.example/mcp", None),
        ("https://A.EXAMPLE:443/mcp", None),
        ("https://b.example:8443/mcp", None),
        ("http://127.0.0.1:9/mcp", None),
        ("https://b.example/mcp", "not among"),
        ("https://b.example:9/mcp", "not among"),
        ("https://evil.a.example/", "not among"),
        ("https://a.example.evil/", "not among"),
        ("https://evil/?a.example", "not among"),
        ("https://a.example@evil/", "user name"),
        ("https://user:pw@a.example/", "user name"),
        ("http://a.example/mcp", "expected https"),
        ("ftp://a.example/mcp", "expected https"),
        ("https:///mcp", "expected https"),
        ("https://a.example:x/", "no URL"),
    ],
)
def test_only_allowed_hosts_are_asked(url: str, told: str | None) -> None:
    problem = url_problem(url, ("a.example", "b.example:8443", "127.0.0.1"))
    assert (problem is None) if told is None else (problem is not None and told in problem)


def test_a_source_must_be_configured_and_allowed() -> None:
    with pytest.raises(SettingsError, match=r"tool_worker\.mcp\.web"):
        chosen_servers(["bash", "mcp:web"], {}, ())
    with pytest.raises(SettingsError, match="not among"):
        chosen_servers(["mcp:web"], {"web": McpServerSettings(url="https://a.example/")}, ())
    local = McpServerSettings(command=("/bin/server",))
    assert chosen_servers(["bash", "mcp:local"], {"local": local, "other": local}, ()) == {"local": local}


def test_secrets_of_headers_come_from_settings_or_the_environment_and_must_be_there() -> None:
    server = McpServerSettings(url="https://a.example/", headers={"Authorization": "KEY"})
    assert secrets_of({"web": server}, {}, {"ROLLSTREAM_SECRET_KEY": "v"}) == {"KEY": "v"}
    with pytest.raises(SettingsError, match="ROLLSTREAM_SECRET_KEY"):
        secrets_of({"web": server}, {}, {})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"command": ("/a",), "url": "https://a/"},
        {"command": ("a",)},
        {"url": "https://a/", "files": "f"},
        {"command": ("/a",), "headers": {"a": "b"}},
    ],
)
def test_settings_that_contradict_themselves_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="McpServerSettings"):
        McpServerSettings(**fields)
