"""The tool ``bash``: one command line, in the sandbox of the session."""

from __future__ import annotations

from rollstream.tool_workers.builtin_tools.program_text import check_source, program_output
from rollstream.tool_workers.functions import TimeLimit, ToolOutput, tool
from rollstream.tool_workers.sandbox.sandbox import Sandbox


@tool
async def bash(sandbox: Sandbox, limit: TimeLimit, command: str) -> ToolOutput:  # noqa: D417 -- what the model reads
    """Run a shell command. Files in /workspace are kept between calls; every call starts there in a new shell.

    Args:
        command: The command line for bash.
    """
    return program_output(await sandbox.bash(check_source(command), timeout_s=limit.timeout_s), limit.timeout_s)
