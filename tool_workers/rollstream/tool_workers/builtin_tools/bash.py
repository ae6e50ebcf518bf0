"""The tool ``bash``: one command line, in the sandbox of the session."""

from __future__ import annotations

from rollstream.tool_workers.builtin_tools.program_text import Timeout, check_source, program_output, time_for
from rollstream.tool_workers.functions import TimeLimit, ToolOutput, tool
from rollstream.tool_workers.sandbox.sandbox import Sandbox


@tool
async def bash(  # noqa: D417 -- what the model reads
    sandbox: Sandbox, limit: TimeLimit, command: str, timeout: Timeout | None = None
) -> ToolOutput:
    """Run a shell command. Files in /workspace are kept between calls; every call starts there in a new shell.

    Args:
        command: The command line for bash.
        timeout: Seconds after which it is stopped.
    """
    timeout_s, note = time_for(limit, timeout)
    return program_output(await sandbox.bash(check_source(command), timeout_s=timeout_s), timeout_s, note=note)
