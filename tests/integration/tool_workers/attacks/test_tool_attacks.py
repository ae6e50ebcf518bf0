"""Hostile arguments of the file tools: answered with a text, fast, about nothing outside, and harmless to read."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path

import pytest
from tool_attacks import ARGUMENTS, PREPARED
from tool_desk import use_tool

from rollstream.schemas.tools import ToolResult
from rollstream.tool_workers.arguments import InvalidArgumentsError
from rollstream.tool_workers.registry import load_tools
from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.sandbox import Sandbox, SandboxFactory
from rollstream.tool_workers.settings import SandboxSettings

pytestmark = pytest.mark.sandbox

TOOLS = load_tools(["bash", "str_replace_editor", "find_text"])
LIMITS = SandboxSettings()
TIME_S = 3.0
FIRST_USER = Path("/etc/passwd").read_text().splitlines()[0]


async def use(sandbox: Sandbox, name: str, **arguments: object) -> ToolResult:
    return await use_tool(TOOLS, sandbox, name, TIME_S, arguments)


async def test_hostile_arguments_are_answered_and_reach_nothing_outside() -> None:
    wrong: dict[str, object] = {}
    async with SandboxFactory(build_spawner("bwrap", LIMITS), LIMITS, max_running_programs=1) as factory:
        sandbox = await factory.open()
        prepared = await use(sandbox, "bash", command=PREPARED)
        assert prepared.status == "ok", prepared.content
        for name, (tool, arguments) in ARGUMENTS.items():
            started = time.monotonic()
            try:
                result = await use(sandbox, tool, **arguments)
            except InvalidArgumentsError:
                continue
            if FIRST_USER in result.content or time.monotonic() - started > TIME_S + 1 or "Traceback" in result.content:
                wrong[name] = (result.status, result.content[:400])
        listing = await use(sandbox, "bash", command="ls; ls -l /usr/bin/env; echo x > /workspace/next && cat next")
        await sandbox.close()
    assert wrong == {}
    assert "pwned" not in listing.content.replace("touch pwned", "")
    assert listing.content.endswith("x\n")


async def test_names_and_contents_of_files_come_without_what_terminals_and_readers_obey() -> None:
    async with SandboxFactory(build_spawner("bwrap", LIMITS), LIMITS, max_running_programs=1) as factory:
        sandbox = await factory.open()
        await use(sandbox, "bash", command=PREPARED)
        seen = [
            await use(sandbox, "find_text", pattern="found"),
            await use(sandbox, "str_replace_editor", command="view", path="."),
            await use(sandbox, "str_replace_editor", command="view", path="bidi"),
            await use(sandbox, "bash", command="cat bytes bidi; ls"),
        ]
        await sandbox.close()
    for result in seen:
        kinds = {unicodedata.category(each) for each in result.content if each not in "\n\t"}
        assert not kinds & {"Cc", "Cf", "Cs"}, result.content
    assert "bidi" in seen[1].content
    assert seen[0].content.count("found") >= 5


async def test_the_files_the_arguments_are_about_are_there() -> None:
    """The control: bash follows the same links, so nothing but the sandbox keeps the host's files away."""
    async with SandboxFactory(build_spawner("unsafe-local", LIMITS), LIMITS, max_running_programs=1) as factory:
        sandbox = await factory.open()
        result = await use(sandbox, "bash", command="ln -s / root; head -1 root/etc/passwd; rm root")
        await sandbox.close()
    assert FIRST_USER in result.content
