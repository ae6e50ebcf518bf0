from __future__ import annotations

import time

import pytest
from pydantic import SecretStr

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.tools import ToolCall
from rollstream.tool_workers.functions import declared_tool, tool
from rollstream.tool_workers.provision import Provision
from rollstream.tool_workers.tool_runner import ToolRunner
from rollstream.tool_workers.tool_secrets import Redaction, Secrets, find_secrets

KEY = "hunter2-hunter2"


@tool(secrets=("SEARCH_KEY",))
async def look_up(secrets: Secrets, what: str) -> str:
    """Look something up."""
    return f"asked with {secrets['SEARCH_KEY']} for {what}"


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


async def test_no_secret_reaches_the_model() -> None:
    declared = declared_tool(look_up)
    assert declared is not None
    assert list(declared.parameters["properties"]) == ["what"]
    runner = ToolRunner(
        worker_id="w", max_output_chars=1000, provision=Provision(secrets={"look_up": Secrets({"SEARCH_KEY": KEY})})
    )
    call = ToolCall(
        call_id="c",
        session_id=None,
        turn=0,
        token=None,
        tool="look_up",
        arguments="{}",
        deadline=time.time() + 60,
        timeout_s=5,
        reply_topic="",
        reply_partition=0,
    )
    result = await runner.run(declared, call, {"what": "tea"}, None, queue_s=0)
    assert result.content == "asked with [secret SEARCH_KEY] for tea"


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
