"""Graders that compare what comes back: what they take for right, and what agents send instead."""

from __future__ import annotations

import json
from typing import Any

import pytest
from grading_desk import CASES, HONEST, Desk, leave

from rollstream.tool_workers.grading.artefacts import Artefacts
from rollstream.tool_workers.grading.grade_tool import run_grader
from rollstream.tool_workers.grading.rooms import GradingRooms
from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.settings import SandboxSettings

pytestmark = pytest.mark.sandbox

FORGED = (
    "import os\n"
    "def double(x):\n"
    "    for fd in range(3, 300):\n"
    "        try: os.write(fd, {answer!r})\n"
    "        except OSError: pass\n"
    "    os._exit(0)\n"
)
ANSWERS = {
    "a float that is none": b'{"value": ["float", 1' + b"0" * 400 + b"]}",
    "an int without end": b'{"value": ["int", "0x' + b"f" * 8000 + b'"]}',
    "an int in digits": b'{"value": 1' + b"0" * 4295 + b"}",
    "a deep value": b'{"value": ' + b'["list", [' * 400 + b"]]" * 400 + b"}",
    "a deep exception": b'{"raised": ' + b"[" * 940 + b"]" * 940 + b"}",
    "nothing": b"",
    "an empty answer": b"{}",
    "no fault": b'{"failed": ""}',
    "no exception": b'{"raised": []}',
    "members of one hash": json.dumps(
        {"value": ["set", [["int", hex(n * (2**61 - 1))] for n in range(1, 1500)]]}
    ).encode(),
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_forged_answer_is_worth_nothing_and_breaks_no_grading(answer: str, desk: Desk) -> None:
    await leave(desk, solution_dot_py=FORGED.format(answer=ANSWERS[answer]))
    assert (await desk.reward("call_cases")).components["passed"] == 0.0
    nothing_expected = {"call": "solution:double", "args": [1]}
    assert (await desk.reward("call_cases", cases=[nothing_expected])).reward == 0.0


async def test_a_set_is_a_list_only_where_a_case_says_that_order_is_free(desk: Desk) -> None:
    padded = "def in_order(xs):\n    s = set(xs)\n    while len(s) < len(xs): s.add('pad%d' % len(s))\n    return s\n"
    cases: list[dict[str, Any]] = [
        {"call": "solution:in_order", "args": [[3, 1, 2, 1]], "expected": [1, 1, 2, 3]},
        {"call": "solution:in_order", "args": [[5, 4]], "expected": [4, 5]},
    ]
    await leave(desk, solution_dot_py=padded)
    assert (await desk.reward("call_cases", cases=cases)).components["passed"] == 0.0
    free = [case | {"unordered": True} for case in cases]
    assert (await desk.reward("call_cases", cases=free)).components["passed"] == 1.0
    await leave(desk, solution_dot_py="def in_order(xs):\n    return xs[::-1]\n")
    assert (await desk.reward("call_cases", cases=free)).reward == 1.0


async def test_an_integer_is_exact_unless_a_case_says_otherwise(desk: Desk) -> None:
    await leave(
        desk,
        solution_dot_py="def count():\n    return 1000000007.0\n",
        main_dot_py="print(1000001)",
    )
    case = {"call": "solution:count", "expected": 1_000_000_006}
    assert (await desk.reward("call_cases", cases=[case])).reward == 0.0
    assert (await desk.reward("call_cases", cases=[case | {"expected": 1_000_000_007}])).reward == 1.0
    assert (await desk.reward("call_cases", cases=[case | {"tolerance": 1e-8}])).reward == 1.0
    printed = {"expected_stdout": "1000000", "compare": "float"}
    assert (await desk.reward("program_cases", cases=[printed])).reward == 0.0
    assert (await desk.reward("program_cases", cases=[printed | {"tolerance": 1e-5}])).reward == 1.0


@pytest.mark.parametrize("tolerance", [-1e-9, 1, 2.5])
async def test_a_tolerance_that_lets_everything_pass_is_refused(tolerance: float, desk: Desk) -> None:
    result = await desk.grade("call_cases", cases=[{"call": "solution:f", "expected": 1, "tolerance": tolerance}])
    assert (result.status, "tolerance" in result.content) == ("error", True)


@pytest.mark.parametrize("code", ["", "raise ValueError\n", "import sys\nsys.exit()\n", "def __getattr__(n): 1 / 0\n"])
async def test_what_cannot_be_called_raises_nothing_that_a_case_expects(code: str, desk: Desk) -> None:
    raised = ("Exception", "ModuleNotFoundError", "AttributeError", "ValueError", "SystemExit", "ZeroDivisionError")
    cases = [{"call": call, "raises": name} for call in ("missing:f", "solution:f") for name in raised]
    await leave(desk, solution_dot_py=code)
    grade = await desk.reward("call_cases", cases=cases)
    assert (grade.components["passed"], "cannot be called" in grade.report) == (0.0, True)


async def test_one_exception_is_not_every_exception(desk: Desk) -> None:
    everything = "class KeyError(ValueError, TypeError, ArithmeticError): pass\ndef f(): raise KeyError\n"
    cases = [{"call": "solution:f", "raises": name} for name in ("KeyError", "ValueError", "TypeError")]
    await leave(desk, solution_dot_py=everything)
    assert (await desk.reward("call_cases", cases=cases)).components["passed"] == 1.0
    own = "class BaseError(ValueError): pass\nclass Broke(BaseError): pass\ndef f(): raise Broke\n"
    await leave(desk, solution_dot_py=own)
    for name in ("Broke", "BaseError", "ValueError", "Exception"):
        assert (await desk.reward("call_cases", cases=[{"call": "solution:f", "raises": name}])).reward == 1.0
    for name in ("KeyError", "object", "Other"):
        assert (await desk.reward("call_cases", cases=[{"call": "solution:f", "raises": name}])).reward == 0.0


@pytest.mark.parametrize("grader", ["call_cases", "program_cases"])
async def test_cases_that_take_all_the_time_have_failed_and_so_have_the_others(grader: str) -> None:
    slow = (
        "import time\ndef double(x):\n    time.sleep(0.4)\n    return 2 * x\n"
        "if __name__ == '__main__': print(double(1))\n"
    )
    arguments: dict[str, dict[str, Any]] = {
        "call_cases": {"cases": [{"call": "solution:double", "args": [1], "expected": 2}] * 12},
        "program_cases": {"program": ["/usr/bin/python3", "solution.py"], "cases": [{"expected_stdout": "2"}] * 12},
    }
    limits = SandboxSettings()
    async with SandboxFactory(build_spawner("bwrap", limits), limits, max_running_programs=1) as factory:
        left = Artefacts({"solution.py": slow.encode()})
        async with GradingRooms(factory, max_gradings=1).room() as room:
            verdict = await run_grader(grader, arguments[grader], left, room, {}, timeout_s=1.5)
    assert (verdict.reward, verdict.components["total"]) == (0.0, 12.0)
    assert 1.0 <= verdict.components["passed"] <= 3.0
    assert "took all the time" in verdict.report


async def test_what_is_expected_may_be_longer_than_what_a_model_reads(desk: Desk) -> None:
    await leave(
        desk,
        solution_dot_py=(
            "def numbers():\n    return [n / 3 for n in range(20_000)]\ndef flood():\n    return 'x' * 2_000_000\n"
            "def ones():\n    return [1.0000000000000002] * 20_000\n"
        ),
        main_dot_py="import sys\nprint('x' * 100_000 if len(sys.argv) < 2 else '€' * 15_000)",
    )
    numbers = {"call": "solution:numbers", "expected": [n / 3 for n in range(20_000)]}
    assert (await desk.reward("call_cases", cases=[numbers])).reward == 1.0
    ones = {"call": "solution:ones", "expected": [1] * 20_000}
    assert (await desk.reward("call_cases", cases=[ones])).reward == 1.0
    flood = await desk.reward("call_cases", cases=[{"call": "solution:flood", "expected": "x"}])
    assert (flood.reward, "more than what is expected" in flood.report) == (0.0, True)
    long = {"expected_stdout": "x" * 100_000, "compare": "exact"}
    assert (await desk.reward("program_cases", cases=[long])).reward == 1.0
    wide = {"expected_stdout": "€" * 15_000, "arguments": ["wide"]}
    assert (await desk.reward("program_cases", cases=[wide])).reward == 1.0


async def test_a_byte_that_is_no_character_is_not_the_text_that_shows_it(desk: Desk) -> None:
    await leave(desk, main_dot_py="import sys\nsys.stdout.buffer.write(b'\\xff')")
    assert (await desk.reward("program_cases", cases=[{"expected_stdout": "\\xff"}])).reward == 0.0


async def test_honest_work_is_still_worth_all_with_every_kind_of_case(desk: Desk) -> None:
    await leave(desk, solution_dot_py=HONEST + "def graph():\n    return {'a': {'c', 'b'}, 'b': set()}\n")
    graph = {"call": "solution:graph", "expected": {"a": ["b", "c"], "b": []}, "unordered": True}
    assert (await desk.reward("call_cases", cases=[*CASES, graph])).reward == 1.0
