"""Graders that run the agent's code on inputs and compare what comes back here, outside of any sandbox.

What is expected never enters a sandbox. Only plain values come back, so that an object that equals everything is worth
nothing.
"""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, UnsetType

from rollstream.tool_workers.grading.artefacts import Artefacts
from rollstream.tool_workers.grading.comparing import UndecidedError, same_output, same_value
from rollstream.tool_workers.grading.rooms import Room
from rollstream.tool_workers.grading.verdict import Check, Verdict, verdict_of
from rollstream.tool_workers.sandbox.inside.plain_values import NotPlainError, decode
from rollstream.tool_workers.sandbox.replies import Execution
from rollstream.tool_workers.sandbox.sandbox import Sandbox

SHOWN_CHARS = 120
MAX_TIMEOUTS_IN_A_ROW = 3
MAX_TIMEOUTS = 10
TIMED_OUT = "ended by timeout"
NOT_TRIED = "not tried, earlier cases timed out"
NO_TIME_LEFT = "not tried, earlier cases took all the time"
KEPT_BYTES = 64 * 1024
KEPT_BYTES_PER_BYTE = 16
"""Of what is expected."""

Tolerance = Annotated[float, Meta(ge=0, lt=1)]
"""Relative and absolute; with 1, every number above zero would be like every other."""


class CallCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``call`` names a function as ``module:function``; it must return ``expected``, or raise ``raises``.

    ``tolerance`` and ``unordered``: see `comparing.same_value`.
    """

    call: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    expected: Any = None
    raises: str | None = None
    tolerance: Tolerance | None = None
    unordered: bool = False
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
    tolerance: Tolerance | None = None
    weight: float = 1.0


class ProgramCases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of the grader ``program_cases``."""

    program: Annotated[list[str], Meta(min_length=1)]
    cases: list[ProgramCase]
    all_or_nothing: bool = True
    case_timeout_s: float = 10.0


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the operation ``call_case``; the agent's code can have written it."""

    value: Any | UnsetType = msgspec.UNSET
    raised: list[str] | None = None
    failed: str | None = None


@dataclass(frozen=True)
class _Attempt:
    """One case: how it is tried within so many seconds, and what is wrong with what came of it, None if nothing is."""

    name: str
    weight: float
    run: Callable[[float], Awaitable[Execution]]
    fault: Callable[[Execution], str | None]


async def grade_calls(given: CallCases, artefacts: Artefacts, room: Room, timeout_s: float) -> Verdict:
    """Each case in a process of its own; ``timeout_s``: of all together. Raises SandboxLostError."""
    sandbox = await room.open(artefacts)
    attempts = [_call(f"case {number} ({case.call})", case, sandbox) for number, case in enumerate(given.cases)]
    checks = await _checks(attempts, timeout_s, given.case_timeout_s)
    return verdict_of(checks, all_or_nothing=given.all_or_nothing)


async def grade_programs(given: ProgramCases, artefacts: Artefacts, room: Room, timeout_s: float) -> Verdict:
    """Each case is a run of the program; ``timeout_s``: of all together. Raises SandboxLostError."""
    sandbox = await room.open(artefacts)
    attempts = [_program(f"case {number}", given.program, case, sandbox) for number, case in enumerate(given.cases)]
    checks = await _checks(attempts, timeout_s, given.case_timeout_s)
    return verdict_of(checks, all_or_nothing=given.all_or_nothing)


async def _checks(attempts: Sequence[_Attempt], timeout_s: float, case_timeout_s: float) -> list[Check]:
    """One after another, until there is no time left for them; waiting for a turn is nobody's time."""
    left_s = timeout_s
    outcomes: list[str | None] = []
    for attempt in attempts:
        if left_s <= 0:
            outcomes.append(NO_TIME_LEFT)
        elif _has_given_up(outcomes):
            outcomes.append(NOT_TRIED)
        else:
            execution = await attempt.run(min(case_timeout_s, left_s))
            fault, cpu_s = await asyncio.to_thread(_judged, attempt, execution)
            outcomes.append(fault)
            left_s -= execution.run_s + cpu_s
    return [
        Check(attempt.name, fault is None, fault or "", attempt.weight)
        for attempt, fault in zip(attempts, outcomes, strict=True)
    ]


def _has_given_up(outcomes: list[str | None]) -> bool:
    """Code that hangs again and again is not waited for case by case."""
    timed_out = [outcome in (TIMED_OUT, NOT_TRIED) for outcome in outcomes]
    return sum(timed_out) >= MAX_TIMEOUTS or (
        len(timed_out) >= MAX_TIMEOUTS_IN_A_ROW and all(timed_out[-MAX_TIMEOUTS_IN_A_ROW:])
    )


def _judged(attempt: _Attempt, execution: Execution) -> tuple[str | None, float]:
    """In a thread: what came back may be large. What is wrong with it, and the seconds that took."""
    started = time.thread_time()
    return _fault(attempt, execution), time.thread_time() - started


def _fault(attempt: _Attempt, execution: Execution) -> str | None:
    if execution.cause is not None:
        return f"ended by {execution.cause}"
    if execution.total_bytes != len(execution.raw):
        return f"it gave {execution.total_bytes} bytes, far more than what is expected"
    try:
        return attempt.fault(execution)
    except UndecidedError as error:
        return str(error)


def _call(name: str, case: CallCase, sandbox: Sandbox) -> _Attempt:
    kept_bytes = _kept_bytes(len(msgspec.json.encode(case.expected)))

    async def run(timeout_s: float) -> Execution:
        arguments = {"call": case.call, "args": case.args, "kwargs": case.kwargs}
        return await sandbox.operate("call_case", arguments, timeout_s=timeout_s, output_bytes=kept_bytes)

    return _Attempt(name, case.weight, run, lambda execution: _fault_of_call(case, execution))


def _program(name: str, program: list[str], case: ProgramCase, sandbox: Sandbox) -> _Attempt:
    kept_bytes = _kept_bytes(len(case.expected_stdout.encode()))

    async def run(timeout_s: float) -> Execution:
        argv = [*program, *case.arguments]
        return await sandbox.operate(
            "run_case", {"argv": argv}, timeout_s=timeout_s, stdin=case.stdin.encode(), output_bytes=kept_bytes
        )

    return _Attempt(name, case.weight, run, lambda execution: _fault_of_program(case, execution))


def _kept_bytes(expected_bytes: int) -> int:
    """What equals it may be longer: 1.0000000000000002 for 1."""
    return KEPT_BYTES + KEPT_BYTES_PER_BYTE * expected_bytes


def _fault_of_call(case: CallCase, execution: Execution) -> str | None:
    try:
        answer = msgspec.json.decode(execution.raw, type=_Answer)
        value = decode(None if answer.value is msgspec.UNSET else answer.value)
    except (msgspec.MsgspecError, ValueError, RecursionError, NotPlainError):
        return "it returned no plain value, or ended its process"
    if answer.failed is not None:
        return answer.failed[:SHOWN_CHARS]
    if case.raises is not None:
        is_right = answer.raised is not None and is_raised(case.raises, answer.raised)
        return None if is_right else f"it did not raise {case.raises}"
    if answer.raised is not None:
        return f"it raised {', '.join(answer.raised)}"[:SHOWN_CHARS]
    if answer.value is not msgspec.UNSET and same_value(case.expected, value, case.tolerance, unordered=case.unordered):
        return None
    return f"it returned {value!r}"[:SHOWN_CHARS]


def is_raised(wanted: str, names: Sequence[str]) -> bool:
    """Whether an exception whose classes have these names, its own first, is the one that is wanted.

    Of built-in classes the first decides, so that one class with many bases is not everything at once.
    """
    sought = _built_in_exception(wanted)
    if sought is None:
        return wanted in names
    first = next((found for found in map(_built_in_exception, names) if found is not None), None)
    return first is not None and issubclass(first, sought)


def _built_in_exception(name: str) -> type[BaseException] | None:
    found: object = getattr(builtins, name, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _fault_of_program(case: ProgramCase, execution: Execution) -> str | None:
    if execution.exit_code != case.exit_code:
        return f"exit code {execution.exit_code}"
    # A byte that is no character is half of a surrogate pair, which nothing expected can hold.
    found = execution.raw.decode("utf-8", "surrogateescape")
    is_same = same_output(case.expected_stdout, found, case.compare, case.tolerance)
    return None if is_same else "another output"
