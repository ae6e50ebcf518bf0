"""Graders that run the agent's code on inputs and compare what comes back here, outside of any sandbox.

What is expected never enters a sandbox. Only plain values come back, so that an object that equals everything is worth
nothing.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec

from rollstream.tool_workers.grading.artefacts import Artefacts
from rollstream.tool_workers.grading.comparing import DEFAULT_TOLERANCE, same_output, same_value
from rollstream.tool_workers.grading.rooms import Room
from rollstream.tool_workers.grading.verdict import Check, Verdict, verdict_of
from rollstream.tool_workers.sandbox.inside.plain_values import NotPlainError, decode
from rollstream.tool_workers.sandbox.replies import Execution
from rollstream.tool_workers.sandbox.sandbox import Sandbox

SHOWN_CHARS = 80
MAX_TIMEOUTS_IN_A_ROW = 3
MAX_TIMEOUTS = 10
TIMED_OUT = "ended by timeout"
NOT_TRIED = "not tried, earlier cases timed out"


class CallCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``call`` names a function as ``module:function``; it must return ``expected``, or raise ``raises``."""

    call: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    expected: Any = None
    raises: str | None = None
    tolerance: float = DEFAULT_TOLERANCE
    weight: float = 1.0


class CallCases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of the grader ``call_cases``."""

    cases: list[CallCase]
    all_or_nothing: bool = True
    case_timeout_s: float = 10.0


class ProgramCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Standard input, and the standard output it must lead to."""

    expected_stdout: str
    stdin: str = ""
    arguments: list[str] = []
    exit_code: int = 0
    compare: Literal["exact", "tokens", "float"] = "tokens"
    tolerance: float = 1e-6
    weight: float = 1.0


class ProgramCases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of the grader ``program_cases``."""

    program: list[str]
    cases: list[ProgramCase]
    all_or_nothing: bool = True
    case_timeout_s: float = 10.0


async def grade_calls(given: CallCases, artefacts: Artefacts, room: Room) -> Verdict:
    """Each case in a process of its own. Raises SandboxLostError."""
    sandbox = await room.open(artefacts)
    checks: list[Check] = []
    for number, case in enumerate(given.cases):
        name = f"case {number} ({case.call})"
        if _has_given_up(checks):
            checks.append(Check(name, False, NOT_TRIED, case.weight))
        else:
            checks.append(await _called(name, case, sandbox, given.case_timeout_s))
    return verdict_of(checks, all_or_nothing=given.all_or_nothing)


def _has_given_up(checks: list[Check]) -> bool:
    """Code that hangs again and again is not waited for case by case."""
    timed_out = [check.message in (TIMED_OUT, NOT_TRIED) for check in checks]
    return sum(timed_out) >= MAX_TIMEOUTS or (
        len(checks) >= MAX_TIMEOUTS_IN_A_ROW and all(timed_out[-MAX_TIMEOUTS_IN_A_ROW:])
    )


async def _called(name: str, case: CallCase, sandbox: Sandbox, timeout_s: float) -> Check:
    arguments = {"call": case.call, "args": case.args, "kwargs": case.kwargs}
    execution = await sandbox.operate("call_case", arguments, timeout_s=timeout_s)
    if execution.cause is not None:
        return Check(name, False, _ended_by(execution), case.weight)
    try:
        answer: dict[str, Any] = json.loads(execution.raw)
        raised = answer.get("raised")
        value = decode(answer["value"]) if raised is None else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, NotPlainError):
        return Check(name, False, "it returned no plain value, or ended its process", case.weight)
    if case.raises is not None:
        passed = isinstance(raised, list) and case.raises in raised
        return Check(name, passed, "" if passed else f"it did not raise {case.raises}", case.weight)
    if raised is not None:
        return Check(name, False, f"it raised {raised!r}"[:SHOWN_CHARS], case.weight)
    passed = same_value(case.expected, value, case.tolerance)
    return Check(name, passed, "" if passed else f"it returned {value!r}"[:SHOWN_CHARS], case.weight)


async def grade_programs(given: ProgramCases, artefacts: Artefacts, room: Room) -> Verdict:
    """Each case is a run of the program. Raises SandboxLostError."""
    sandbox = await room.open(artefacts)
    checks: list[Check] = []
    for number, case in enumerate(given.cases):
        if _has_given_up(checks):
            checks.append(Check(f"case {number}", False, NOT_TRIED, case.weight))
            continue
        execution = await sandbox.operate(
            "run_case",
            {"argv": [*given.program, *case.arguments]},
            timeout_s=given.case_timeout_s,
            stdin=case.stdin.encode(),
        )
        ended_well = execution.cause is None and execution.exit_code == case.exit_code
        passed = ended_well and same_output(case.expected_stdout, execution.output, case.compare, case.tolerance)
        said = _ended_by(execution) if execution.cause else f"exit code {execution.exit_code}, or another output"
        checks.append(Check(f"case {number}", passed, "" if passed else said, case.weight))
    return verdict_of(checks, all_or_nothing=given.all_or_nothing)


def _ended_by(execution: Execution) -> str:
    return f"ended by {execution.cause}"
