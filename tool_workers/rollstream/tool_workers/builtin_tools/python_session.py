"""The tool ``python_session``: one interpreter that lasts as long as the session."""

from __future__ import annotations

from rollstream.tool_workers.builtin_tools.program_text import Timeout, check_source, program_output, time_for
from rollstream.tool_workers.functions import TimeLimit, ToolOutput, tool
from rollstream.tool_workers.sandbox.sandbox import Sandbox

FRESH = "the interpreter has ended; the next call starts a new one, variables are gone"


@tool
async def python_session(  # noqa: D417 -- what the model reads
    sandbox: Sandbox, limit: TimeLimit, code: str = "", restart: bool = False, timeout: Timeout | None = None
) -> ToolOutput:
    """Run Python code in one interpreter: variables are kept. Shows what is printed and the value of a last expression.

    Args:
        code: The source text.
        restart: Start with a new interpreter.
        timeout: Seconds after which it is stopped, and the interpreter with it.
    """
    check_source(code)
    if restart:
        await sandbox.restart("interpreter")
        if not code:
            return ToolOutput("the interpreter was started again")
    timeout_s, note = time_for(limit, timeout)
    execution = await sandbox.interpreter(code, timeout_s=timeout_s)
    return program_output(execution, timeout_s, note=note, fresh=FRESH)
