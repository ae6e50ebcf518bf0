"""A session of an agent's and somebody who grades what it leaves: what the tests of graders have in common."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest_asyncio

from rollstream.schemas.tools import Grade, ToolCall, ToolResult
from rollstream.tool_workers.grading.grade_tool import build_grade_tool
from rollstream.tool_workers.grading.own import Grading, grader
from rollstream.tool_workers.grading.rooms import GradingRooms
from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory, SupervisedSandbox
from rollstream.tool_workers.settings import MIB, SandboxSettings
from rollstream.tool_workers.tool_runner import ToolRunner

ANSWER = "8675309"
HONEST = "def double(x):\n    return 2 * x\n"
TESTS = {
    "test_double.py": (
        "import unittest\nfrom solution import double\n"
        "class Doubling(unittest.TestCase):\n"
        "    def test_small(self):\n        self.assertEqual(double(2), 4)\n"
        f"    def test_large(self):\n        self.assertEqual(double({ANSWER}), 2 * {ANSWER})\n"
        "def test_text():\n    assert double('ab') == 'abab'\n"
    )
}
CASES = [
    {"call": "solution:double", "args": [2], "expected": 4},
    {"call": "solution:double", "args": [1.5], "expected": 3.0},
    {"call": "solution:double", "args": ["ab"], "expected": "abab"},
    {"call": "solution:double", "args": [None], "raises": "TypeError"},
]
PROGRAMS = [{"stdin": "2\n", "expected_stdout": "4"}, {"stdin": "21\n", "expected_stdout": "42\n"}]
GRADERS: dict[str, dict[str, Any]] = {
    "unit_tests": {"tests": TESTS, "modules": ["solution"], "test_timeout_s": 3, "timeout_s": 8},
    "call_cases": {"cases": CASES, "case_timeout_s": 1},
    "program_cases": {"program": ["/usr/bin/python3", "main.py"], "cases": PROGRAMS, "case_timeout_s": 1},
    "command_tests": {"command": "python3 -m unittest test_double.Doubling", "tests": TESTS, "timeout_s": 5},
}


class Desk:
    """A session of an agent's, and somebody who grades what it leaves."""

    def __init__(self, agent: SupervisedSandbox, grade: Callable[..., Awaitable[ToolResult]]) -> None:
        self.agent = agent
        self.grade = grade

    async def reward(self, name: str, **changed: Any) -> Grade:
        result = await self.grade(name, **changed)
        assert result.status == "ok", result.content
        return Grade(**json.loads(result.content))


@grader
async def longest_line(grading: Grading) -> dict[str, float]:
    sandbox = await grading.room.open(grading.artefacts)
    found = await sandbox.bash("wc -L < solution.py", timeout_s=5)
    return {"reward": float(int(found.output) < grading.arguments["limit"]), "length": float(found.output)}


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    limits = SandboxSettings(memory_bytes=256 * MIB)
    runner = ToolRunner(worker_id="w", max_output_chars=16_000)
    async with SandboxFactory(build_spawner("bwrap", limits), limits, max_running_programs=4) as factory:
        tool = build_grade_tool(GradingRooms(factory, max_gradings=2), {"longest_line": longest_line})
        agent = await factory.open()

        async def grade(
            name: str,
            artefacts: tuple[str, ...] = ("*.py", "**/*"),
            files: dict[str, str] | None = None,
            **changed: Any,
        ) -> ToolResult:
            arguments = GRADERS.get(name, {}) | changed
            text = json.dumps({"grader": name, "arguments": arguments, "artefacts": artefacts, "files": files or {}})
            call = ToolCall(
                call_id="c",
                session_id="s",
                turn=1,
                token="t",
                tool=tool.name,
                arguments=text,
                deadline=time.time() + 100,
                timeout_s=60,
                reply_topic="",
                reply_partition=0,
            )
            return await runner.run(tool, call, tool.parse(text), agent, queue_s=0.0)

        yield Desk(agent, grade)
        await agent.close()


async def leave(desk: Desk, **files: str) -> None:
    for path, text in files.items():
        arguments = {"command": "create", "path": path.replace("__", "/").replace("_dot_", "."), "file_text": text}
        assert (await desk.agent.operate("editor", arguments, timeout_s=5)).exit_code == 0
