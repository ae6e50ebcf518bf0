"""How the model reads the outcome of a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta

from rollstream.tool_workers.functions import TimeLimit, ToolError, ToolOutput
from rollstream.tool_workers.sandbox.replies import Execution, SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import Sandbox
from rollstream.tool_workers.signals import signals_of

MAX_SOURCE_BYTES = 120_000
"""The kernel takes at most 128 KiB as one argument."""
OPERATION_S = 20.0
"""What looking at files or editing them may take."""

Timeout = Annotated[float, Meta(gt=0, le=3600)]
"""Seconds, as a model may ask for them."""

_REASONS = {
    "memory": "too much memory",
    "output": "too much output",
    "cpu": "too much processor time",
    "files": "too many files or sockets",
}


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


def time_for(limit: TimeLimit, asked_s: float | None) -> tuple[float, str]:
    """Seconds a program gets, and what to tell whoever asked for more."""
    if asked_s is None:
        return limit.timeout_s, ""
    if asked_s > limit.timeout_s:
        return limit.timeout_s, f"timeout lowered to {limit.timeout_s:g} s, the limit"
    return asked_s, ""


async def operate(sandbox: Sandbox, limit: TimeLimit, operation: str, arguments: Mapping[str, Any]) -> ToolOutput:
    """What one of our operations on the session's files answers.

    Raises:
        ToolError: what the caller did wrong.
        SandboxLostError: it could not even be started.
    """
    timeout_s = min(limit.timeout_s, OPERATION_S)
    execution = await sandbox.operate(operation, arguments, timeout_s=timeout_s)
    if execution.cause is None and execution.exit_code == 1 and execution.output.startswith("Error: "):
        raise ToolError(execution.output.removeprefix("Error: "))
    return program_output(execution, timeout_s)


def program_output(execution: Execution, timeout_s: float, *, note: str = "", fresh: str = "") -> ToolOutput:
    """Output, and after it what else there is to say: the exit code, or why it was killed.

    Args:
        execution: how it went.
        timeout_s: how long it was allowed to take.
        note: more to say.
        fresh: and what, if the long-lived process it ran in has ended.

    Raises:
        SandboxLostError: the program could not even be started.
    """
    if execution.cause == "failed_to_start":
        raise SandboxLostError(f"a program could not be started in the sandbox: {execution.tail}")
    signals = signals_of(execution)
    text, status = execution.output, "ok"
    if execution.cause is not None:
        reason = _REASONS.get(execution.cause, f"timed out after {timeout_s:g} s")
        text = _with_note(text, f"{reason}, all processes were killed")
        status = "timeout" if execution.cause == "timeout" else "limit"
    elif execution.exit_code != 0:
        text, status = _with_note(text, f"exit code: {execution.exit_code}"), "error"
    if notes := [each for each in (note, fresh if execution.is_restarted else "") if each]:
        text = _with_note(text, "; ".join(notes))
    return ToolOutput(text or "(no output)", status, signals)


def _with_note(output: str, note: str) -> str:
    separator = "" if not output or output.endswith("\n") else "\n"
    return f"{output}{separator}[{note}]"
