"""The tool ``python``: one program, in the sandbox of the session."""

from __future__ import annotations

from rollstream.tool_workers.builtin_tools.program_text import check_source, program_output
from rollstream.tool_workers.functions import TimeLimit, ToolOutput, tool
from rollstream.tool_workers.sandbox.sandbox import Sandbox


@tool
async def python(sandbox: Sandbox, limit: TimeLimit, code: str) -> ToolOutput:  # noqa: D417 -- what the model reads
    """Run a Python program and return what it prints. Files in /workspace are kept between calls; variables are not.

    Args:
        code: The source text of the program.
    """
    return program_output(await sandbox.python(check_source(code), timeout_s=limit.timeout_s), limit.timeout_s)
