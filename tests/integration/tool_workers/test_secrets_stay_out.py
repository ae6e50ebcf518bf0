"""Secrets of tools are in the worker's settings, environment and memory, and nowhere in a sandbox."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import AsyncExitStack

import pytest
from pydantic import SecretStr

from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.tool_workers.functions import Tool, declared_tool, tool
from rollstream.tool_workers.provision import Provision
from rollstream.tool_workers.registry import ToolRegistry
from rollstream.tool_workers.sandbox.sandbox import Sandbox
from rollstream.tool_workers.service import secrets_of_tools, start_sandboxes
from rollstream.tool_workers.settings import ToolWorkerSettings
from rollstream.tool_workers.tool_runner import ToolRunner
from rollstream.tool_workers.tool_secrets import VARIABLE_PREFIX, Secrets

pytestmark = pytest.mark.sandbox

# Looks for a word in two halves, so that it does not find itself.
LOOK = """
import os, stat
def texts():
    for name in os.listdir("/proc"):
        if name.isdigit():
            for part in ("environ", "cmdline"):
                yield f"/proc/{{name}}/{{part}}"
    for folder, _, files in os.walk("/"):
        if not folder.startswith(("/proc", "/sys", "/usr")):
            for name in files:
                path = os.path.join(folder, name)
                if stat.S_ISREG(os.lstat(path).st_mode):
                    yield path
seen = 0
for path in texts():
    try:
        with open(path, "rb") as file:
            content = file.read(10_000_000)
    except OSError:
        continue
    seen += 1
    for word in ({first!r} + {second!r}, {third!r} + {fourth!r}):
        if word.encode() in content:
            print("FOUND", path)
print("looked at", "enough" if seen > 10 else seen)
"""


@tool(secrets=("SHOP_KEY", "SHOP_WORD"), timeout_s=60)
async def look(box: Sandbox, secrets: Secrets, how: str) -> str:
    """Use secrets beside a sandbox, and look for them in it."""
    key, word = secrets["SHOP_KEY"], secrets["SHOP_WORD"]
    if how == "careless":
        await box.bash(f"echo {key} > /workspace/left", timeout_s=20)
    source = LOOK.format(first=key[:8], second=key[8:], third=word[:8], fourth=word[8:])
    done = await getattr(box, "interpreter" if how == "interpreter" else "python")(source, timeout_s=50)
    return done.output


async def found_by(how: str, monkeypatch: pytest.MonkeyPatch) -> ToolResult:
    in_environment, in_settings = uuid.uuid4().hex, uuid.uuid4().hex
    monkeypatch.setenv(VARIABLE_PREFIX + "SHOP_KEY", in_environment)
    settings = ToolWorkerSettings(secrets={"SHOP_WORD": SecretStr(in_settings)}, blank_sandboxes=0)
    declared = declared_tool(look)
    assert isinstance(declared, Tool)
    registry = ToolRegistry([declared])
    async with AsyncExitStack() as stack:
        started = await start_sandboxes(settings, registry, stack)
        assert started is not None
        secrets = secrets_of_tools(registry, settings)
        assert set(secrets["look"].values()) == {in_environment, in_settings}
        sandbox = await started.factory.open()
        stack.push_async_callback(sandbox.close)
        call = ToolCall(
            call_id="c",
            session_id="s",
            turn=0,
            token=None,
            tool="look",
            arguments="{}",
            deadline=time.time() + 60,
            timeout_s=60,
            reply_topic="",
            reply_partition=0,
        )
        runner = ToolRunner(worker_id="w", max_output_chars=4000, provision=Provision(secrets=secrets))
        result = await runner.run(declared, call, {"how": how}, sandbox, queue_s=0, incarnation="i")
    assert os.environ[VARIABLE_PREFIX + "SHOP_KEY"] == in_environment
    return result


@pytest.mark.parametrize("how", ["python", "interpreter"])
async def test_no_secret_is_in_any_environment_command_line_or_file_of_a_sandbox(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = await found_by(how, monkeypatch)
    assert (result.status, result.content) == ("ok", "looked at enough\n")


async def test_one_that_a_tool_puts_there_itself_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    result = await found_by("careless", monkeypatch)
    assert (result.status, result.content) == ("ok", "FOUND /workspace/left\nlooked at enough\n")
