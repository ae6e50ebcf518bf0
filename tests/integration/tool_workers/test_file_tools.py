"""The sandboxed tools, as a model calls them, on real sandboxes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from tool_desk import use_tool

from rollstream.schemas.tools import ToolResult
from rollstream.tool_workers.registry import load_tools
from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.settings import SandboxSettings

pytestmark = pytest.mark.sandbox

TOOLS = load_tools(["bash", "python", "bash_session", "python_session", "str_replace_editor", "find_text"])
CallTool = Callable[..., Awaitable[ToolResult]]


@pytest_asyncio.fixture
async def use() -> AsyncIterator[CallTool]:
    limits = SandboxSettings()
    async with SandboxFactory(build_spawner("bwrap", limits), limits, max_running_programs=4) as factory:
        sandbox = await factory.open()

        async def call(name: str, timeout_s: float = 20.0, **arguments: Any) -> ToolResult:
            return await use_tool(TOOLS, sandbox, name, timeout_s, arguments)

        yield call
        await sandbox.close()


async def test_files_written_by_one_tool_are_seen_by_all(use: CallTool) -> None:
    await use("str_replace_editor", command="create", path="/workspace/m.py", file_text="x = 41\n")
    await use("str_replace_editor", command="str_replace", path="m.py", old_str="41", new_str="42")
    assert (await use("python", code="import m; print(m.x)")).content == "42\n"
    assert (await use("bash", command="cat m.py")).content == "x = 42\n"
    assert (await use("find_text", pattern="42")).content == "m.py:1: x = 42\n"
    assert (await use("str_replace_editor", command="undo_edit", path="m.py")).status == "ok"
    assert (await use("python_session", code="import m\nm.x")).content == "41\n"


async def test_a_longer_time_than_allowed_is_lowered_and_said_to_be(use: CallTool) -> None:
    slow = await use("bash", command="sleep 60", timeout=0.3)
    assert (slow.status, slow.content) == ("timeout", "[timed out after 0.3 s, all processes were killed]")
    assert slow.metrics == {"killed_timeout": 1.0}
    greedy = await use("bash", 2.0, command="echo x", timeout=500)
    assert greedy.content == "x\n[timeout lowered to 2 s, the limit]"


async def test_sessions_last_and_say_when_they_do_not(use: CallTool) -> None:
    await use("bash_session", command="cd /tmp; x=5")
    assert (await use("bash_session", command="echo $PWD $x")).content == "/tmp 5\n"
    ended = await use("bash_session", command="exit 3")
    assert ended.status == "error"
    assert ended.content.startswith("[exit code: 3]\n[the shell has ended; the next command starts a new one")
    assert (await use("bash_session", command="echo [$x]", restart=True)).content == "[]\n"
    assert (await use("bash_session", restart=True)).content == "the shell was started again"
    await use("python_session", code="y = 1")
    assert (await use("python_session", restart=True)).content == "the interpreter was started again"
    assert "NameError" in (await use("python_session", code="y")).content


@pytest.mark.parametrize("tool", ["str_replace_editor", "find_text"])
async def test_links_and_traversal_reach_the_sandbox_only(tool: str, use: CallTool) -> None:
    await use("bash", command="ln -s /etc/passwd x; ln -s / root; mkfifo pipe")
    arguments = {"command": "view"} if tool == "str_replace_editor" else {"pattern": "root:"}
    for path in ("x", "../../etc/shadow", "/proc/self/root/etc/shadow", "root/root/.ssh", "/proc/1/environ", "pipe"):
        seen = await use(tool, path=path, **arguments)
        assert "root:" not in seen.content.replace("pattern 'root:'", ""), path


async def test_reading_what_never_ends_fails_at_once(use: CallTool) -> None:
    await use("bash", command="mkfifo pipe; truncate -s 60M huge")
    started = time.monotonic()
    for path in ("pipe", "/dev/zero", "huge", "/dev/stdin"):
        seen = await use("str_replace_editor", command="view", path=path)
        assert seen.status == "error", path
        await use("find_text", pattern="x", path=path)
    assert time.monotonic() - started < 5


async def test_a_pattern_that_explodes_is_stopped(use: CallTool) -> None:
    await use("bash", command="printf 'a%.0s' {1..60} > a; echo b >> a")
    stuck = await use("find_text", 1.0, pattern="(a+)+$", regex=True)
    assert (stuck.status, stuck.metrics) == ("timeout", {"killed_timeout": 1.0})
    assert (await use("bash", command="echo next")).content == "next\n"


async def test_refused_attempts_are_told_in_the_metrics(use: CallTool) -> None:
    tried = await use("bash", command="unshare -Ur true; python3 -c 'import socket; socket.socket()'")
    assert tried.metrics["denied_unshare"] >= 1
    assert tried.metrics["denied"] >= 1
    assert tried.metrics["network_attempts"] == 1
    assert (await use("bash", command="true")).metrics == {}
