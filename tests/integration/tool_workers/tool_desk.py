"""One call of a tool in a sandbox, as a tool worker runs it: what the tests of tools have in common."""

from __future__ import annotations

import json
import time

from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.tool_workers.registry import ToolRegistry
from rollstream.tool_workers.sandbox.sandbox import Sandbox
from rollstream.tool_workers.tool_runner import ToolRunner

RUNNER = ToolRunner(worker_id="w", max_output_chars=16_000)


async def use_tool(
    tools: ToolRegistry, sandbox: Sandbox, name: str, timeout_s: float, arguments: dict[str, object]
) -> ToolResult:
    """What the model is answered."""
    tool = tools.get(name)
    assert tool is not None
    text = json.dumps(arguments)
    call = ToolCall(
        call_id="c",
        session_id="s",
        turn=0,
        token=None,
        tool=name,
        arguments=text,
        deadline=time.time() + 60,
        timeout_s=timeout_s,
        reply_topic="",
        reply_partition=0,
    )
    return await RUNNER.run(tool, call, tool.parse(text), sandbox, queue_s=0.0)
