"""The tool ``bash_session``: one shell that lasts as long as the session."""

from __future__ import annotations

from rollstream.tool_workers.builtin_tools.program_text import Timeout, check_source, program_output, time_for
from rollstream.tool_workers.functions import TimeLimit, ToolOutput, tool
from rollstream.tool_workers.sandbox.sandbox import Sandbox

FRESH = "the shell has ended; the next command starts a new one, variables and folder are gone"


@tool
async def bash_session(  # noqa: D417 -- what the model reads
    sandbox: Sandbox, limit: TimeLimit, command: str = "", restart: bool = False, timeout: Timeout | None = None
) -> ToolOutput:
    """Run a command in one shell: its folder, variables and functions are kept. Background jobs end with the command.

    Args:
        command: The command line for bash.
        restart: Start with a new shell.
        timeout: Seconds after which it is stopped, and the shell with it.
    """
    check_source(command)
    if restart:
        await sandbox.restart("shell")
        if not command:
            return ToolOutput("the shell was started again")
    timeout_s, note = time_for(limit, timeout)
    execution = await sandbox.shell(command, timeout_s=timeout_s)
    return program_output(execution, timeout_s, note=note, fresh=FRESH)
