"""The tool ``python``: one program, in the sandbox of the session."""

from __future__ import annotations

from rollstream.tool_workers.builtin_tools.program_text import Timeout, check_source, program_output, time_for
from rollstream.tool_workers.functions import TimeLimit, ToolOutput, tool
from rollstream.tool_workers.sandbox.sandbox import Sandbox


@tool
async def python(  # noqa: D417 -- what the model reads
    sandbox: Sandbox, limit: TimeLimit, code: str, timeout: Timeout | None = None
) -> ToolOutput:
    """Run a Python program and return what it prints. Files in /workspace are kept between calls; variables are not.

    Args:
        code: The source text of the program.
        timeout: Seconds after which it is stopped.
    """
    timeout_s, note = time_for(limit, timeout)
    return program_output(await sandbox.python(check_source(code), timeout_s=timeout_s), timeout_s, note=note)
