from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.tool_workers.functions import declared_tool, tool
from rollstream.tool_workers.provision import Provision
from rollstream.tool_workers.registry import load_tools
from rollstream.tool_workers.service import secrets_of_tools
from rollstream.tool_workers.settings import ToolWorkerSettings
from rollstream.tool_workers.tool_runner import ToolRunner
from rollstream.tool_workers.tool_secrets import SHORTEST_REDACTED_CHARS, Redaction, Secrets, find_secrets

KEY = "hunter2-hunter2"


@tool(secrets=("SEARCH_KEY",))
async def look_up(secrets: Secrets, what: str) -> str:
    """Look something up."""
    return f"asked with {secrets['SEARCH_KEY']} for {what}"


async def answer_of(function: object, arguments: dict[str, Any], provision: Provision | None = None) -> ToolResult:
    declared = declared_tool(function)
    assert declared is not None
    provision = provision or Provision(secrets={declared.name: Secrets({"SEARCH_KEY": KEY})})
    call = ToolCall(
        call_id="c",
        session_id=None,
        turn=0,
        token=None,
        tool=declared.name,
        arguments="{}",
        deadline=time.time() + 60,
        timeout_s=5,
        reply_topic="",
        reply_partition=0,
    )
    runner = ToolRunner(worker_id="w", max_output_chars=1000, provision=provision)
    return await runner.run(declared, call, arguments, None, queue_s=0)


def test_a_tool_is_given_the_secrets_it_declares_and_no_others() -> None:
    found = find_secrets(
        {"a": ["X"], "b": ["Y"]}, {"X": SecretStr("xx"), "Z": SecretStr("zz")}, {"ROLLSTREAM_SECRET_Y": "yy"}
    )
    assert {name: dict(secrets) for name, secrets in found.items()} == {"a": {"X": "xx"}, "b": {"Y": "yy"}}


def test_a_missing_secret_is_named_with_its_tool_and_where_to_set_it() -> None:
    with pytest.raises(SettingsError, match=r"'look_up' needs the secret 'SEARCH_KEY': set tool_worker\.secrets"):
        find_secrets({"look_up": ["SEARCH_KEY"]}, {}, {"SEARCH_KEY": "not that one"})


def test_secrets_do_not_show_themselves() -> None:
    secrets = Secrets({"SEARCH_KEY": KEY})
    assert repr(secrets) == str(secrets) == "Secrets(SEARCH_KEY)"
    assert f"{secrets}" == "Secrets(SEARCH_KEY)"


def test_the_longest_secret_is_taken_out_first_and_short_ones_are_left() -> None:
    redact = Redaction([Secrets({"LONG": "abcdefgh", "PART": "abcdef", "SHORT": "ab"})])
    assert redact("abcdefgh abcdef ab") == "[secret LONG] [secret PART] ab"


@given(
    st.text(min_size=SHORTEST_REDACTED_CHARS, max_size=30), st.text("xyz{}", max_size=5), st.text("xyz{}", max_size=5)
)
def test_a_secret_is_found_as_it_is_and_as_json_and_urls_write_it(value: str, before: str, after: str) -> None:
    redact = Redaction([Secrets({"KEY": value})])
    for written in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], quote_plus(value)):
        assert redact(f"{before}\n{written}\n{after}").count("[secret KEY]") >= 1


async def test_a_secret_with_a_terminal_sequence_in_it_is_found_after_cleaning() -> None:
    @tool(secrets=("SEARCH_KEY",))
    async def coloured(secrets: Secrets) -> str:
        """Show it in colours."""
        return secrets["SEARCH_KEY"][:5] + "\x1b[31m" + secrets["SEARCH_KEY"][5:]

    assert (await answer_of(coloured, {})).content == "[secret SEARCH_KEY]"


async def test_errors_do_not_tell_secrets_either() -> None:
    @tool(secrets=("SEARCH_KEY",))
    async def careless(secrets: Secrets) -> str:
        """Fail."""
        raise OSError(f"401 for http://search.example/?key={secrets['SEARCH_KEY']}")

    @tool(secrets=("SEARCH_KEY",))
    async def down(secrets: Secrets) -> str:
        """Be down."""
        raise TransientError(f"no answer to {secrets['SEARCH_KEY']}")

    assert KEY not in (await answer_of(careless, {})).content
    assert KEY not in (await answer_of(down, {})).content


def test_who_only_describes_tools_needs_no_secrets(tmp_path: Path) -> None:
    path = tmp_path / "with_a_secret.py"
    path.write_text(
        "from rollstream.tool_workers.functions import tool\n"
        "from rollstream.tool_workers.tool_secrets import Secrets\n\n\n"
        "@tool(secrets=('SEARCH_KEY',))\n"
        "async def look(secrets: Secrets, what: str) -> str:\n"
        "    'Look it up.'\n"
        "    return what\n"
    )
    registry = load_tools([str(path)])
    assert [spec.name for spec in registry.specs()] == ["look"]
    with pytest.raises(SettingsError, match="'look' needs the secret 'SEARCH_KEY'"):
        secrets_of_tools(registry, ToolWorkerSettings())
    given_ones = ToolWorkerSettings(secrets={"SEARCH_KEY": SecretStr(KEY)})
    assert dict(secrets_of_tools(registry, given_ones)["look"]) == {"SEARCH_KEY": KEY}
    assert KEY not in repr(given_ones)


async def test_no_secret_reaches_the_model() -> None:
    declared = declared_tool(look_up)
    assert declared is not None
    assert list(declared.parameters["properties"]) == ["what"]
    result = await answer_of(look_up, {"what": "tea"})
    assert result.content == "asked with [secret SEARCH_KEY] for tea"


async def test_of_two_tools_with_secrets_each_is_handed_its_own() -> None:
    given_to: dict[str, dict[str, str]] = {}

    @tool(secrets=("FIRST_KEY",))
    async def first(secrets: Secrets) -> str:
        """Take the first."""
        given_to["first"] = dict(secrets)
        return "done"

    @tool(secrets=("SECOND_KEY",))
    async def second(secrets: Secrets) -> str:
        """Take the second."""
        given_to["second"] = dict(secrets)
        return "done"

    held = {"first": Secrets({"FIRST_KEY": "one"}), "second": Secrets({"SECOND_KEY": "two"})}
    for function in (first, second):
        await answer_of(function, {}, Provision(secrets=held))
    assert given_to == {"first": {"FIRST_KEY": "one"}, "second": {"SECOND_KEY": "two"}}


def test_secrets_are_declared_and_taken_or_neither() -> None:
    async def without(what: str) -> str:
        """Take none."""
        return what

    async def undeclared(secrets: Secrets) -> str:
        """Declare none."""
        return str(secrets)

    with pytest.raises(SettingsError, match="or neither"):
        tool(secrets=("KEY",))(without)
    with pytest.raises(SettingsError, match="or neither"):
        tool(undeclared)
    with pytest.raises(SettingsError, match="no names like"):
        tool(secrets=("my key",))(undeclared)
