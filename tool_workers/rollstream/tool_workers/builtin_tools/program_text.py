"""How the model reads the outcome of a program."""

from __future__ import annotations

from rollstream.tool_workers.functions import ToolError, ToolOutput
from rollstream.tool_workers.sandbox.replies import Execution, SandboxLostError

MAX_SOURCE_BYTES = 120_000
"""The kernel takes at most 128 KiB as one argument."""


def check_source(source: str) -> str:
    """The source, if it can be handed to a program.

    Raises:
        ToolError: it is too long or holds a NUL or a lone surrogate.
    """
    try:
        size = len(source.encode())
    except UnicodeEncodeError:
        raise ToolError("the text holds half of a surrogate pair, which is not a character") from None
    if size > MAX_SOURCE_BYTES:
        raise ToolError(f"the text is {size} bytes, at most {MAX_SOURCE_BYTES}; write a file in several steps")
    if "\0" in source:
        raise ToolError("the text holds a NUL character")
    return source


def program_output(execution: Execution, timeout_s: float) -> ToolOutput:
    """Output, and after it what else there is to say: the exit code, or why it was killed.

    Raises:
        SandboxLostError: the program could not even be started.
    """
    if execution.cause == "failed_to_start":
        raise SandboxLostError(f"a program could not be started in the sandbox: {execution.tail}")
    output = execution.output
    if execution.cause is None and execution.exit_code == 0:
        return ToolOutput(output or "(no output)")
    if execution.cause is None:
        return ToolOutput(_with_note(output, f"exit code: {execution.exit_code}"), "error")
    if execution.cause == "timeout":
        return ToolOutput(_with_note(output, f"timed out after {timeout_s:g} s, all processes were killed"), "timeout")
    reason = "too much memory" if execution.cause == "memory" else "too much output"
    return ToolOutput(_with_note(output, f"{reason}, all processes were killed"), "limit")


def _with_note(output: str, note: str) -> str:
    separator = "" if not output or output.endswith("\n") else "\n"
    return f"{output}{separator}[{note}]"
