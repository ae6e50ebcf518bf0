"""Tests in one sandbox, the code under test in another, and between them nothing but plain values.

The code cannot patch the test runner, read the tests, end their process, or answer for their outcome: it is not there.
Reports count only with a word that is new for each grading, and time is kept here.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from rollstream.tool_workers.functions import ToolError
from rollstream.tool_workers.grading.artefacts import Artefacts, check_paths
from rollstream.tool_workers.grading.rooms import Room
from rollstream.tool_workers.grading.verdict import Check, Verdict, verdict_of
from rollstream.tool_workers.sandbox.bridge import Bridge
from rollstream.tool_workers.sandbox.bubblewrap import WORKSPACE
from rollstream.tool_workers.sandbox.replies import SandboxLostError

MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_TESTS = 10_000
LAST_WORD_TIMEOUT_S = 5.0


class UnitTests(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of the grader ``unit_tests``.

    Attributes:
        tests: source texts by file name.
        modules: what the tests import of the agent's.
        is_isolated: whether those live in another sandbox. If not, tests and code share a process: needed where tests
            patch, subclass or compare the code's own objects, and open to code that goes looking for its tests.
        timeout_s: of all tests together.
        test_timeout_s: of one.
    """

    tests: dict[str, str]
    modules: list[str] = []
    is_isolated: bool = True
    all_or_nothing: bool = True
    timeout_s: float = 120.0
    test_timeout_s: float = 20.0


async def grade_unit_tests(given: UnitTests, artefacts: Artefacts, room: Room) -> Verdict:
    """Run the tests. Raises SandboxLostError, ToolError."""
    if not given.tests or (given.is_isolated and not given.modules):
        raise ToolError("unit_tests needs `tests` (file names and their texts) and `modules` (what they import)")
    check_paths(given.tests, "tests")
    subject: Lines | None = None
    if given.is_isolated:
        tests_sandbox = await room.open()
        subject_sandbox = await room.open(artefacts)
        subject = Lines(await subject_sandbox.host("code_host", {"folder": WORKSPACE}), "the code under test")
    else:
        tests_sandbox = await room.open(artefacts.beside_tests(), given.tests)
    tests = Lines(await tests_sandbox.host("test_host", {}), "the tests")
    grading = TestRun(given, tests, subject)
    try:
        async with asyncio.timeout(given.timeout_s):
            await grading.run()
    except TimeoutError:
        grading.note = f"stopped after {given.timeout_s:g} s"
    return verdict_of(grading.checks(), all_or_nothing=given.all_or_nothing)


@dataclass
class TestRun:
    """The conversation between tests and code, as the worker relays it."""

    __test__ = False  # not a test of ours

    given: UnitTests
    tests: Lines
    subject: Lines | None
    note: str = "it did not get so far"
    _names: list[str] = field(default_factory=list[str])
    _outcomes: dict[str, Check] = field(default_factory=dict[str, Check])
    _nonce: str = field(default_factory=lambda: secrets.token_hex(16))

    async def run(self) -> None:
        """Until the tests are done, or one of the two has nothing more to say.

        Raises:
            SandboxLostError: one of the sandboxes is gone, which nobody's code has done.
        """
        subjects = self.given.modules if self.subject is not None else []
        order = {"nonce": self._nonce, "tests": self.given.tests, "subjects": subjects, "folder": WORKSPACE}
        await self.tests.send(order)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.given.test_timeout_s
        while True:
            try:
                message = await self.tests.receive(max(0.0, deadline - loop.time()))
                if "ask" in message:
                    answer = await self._asked(message["ask"], max(0.0, deadline - loop.time()))
                    await self.tests.send(answer)
                    continue
            except TimeoutError:
                self.note = f"a test took longer than {self.given.test_timeout_s:g} s"
                return
            except EndOfLinesError as end:
                self.note = str(end)
                return
            if message.get("nonce") == self._nonce:
                deadline = loop.time() + self.given.test_timeout_s
                if self._reported(message):
                    return

    def checks(self) -> list[Check]:
        """One per test; what was not reported has failed. Without a list of tests, that alone is the failure."""
        if not self._names:
            return [Check("tests", False, self.note)]
        return [self._outcomes.get(name) or Check(name, False, self.note) for name in self._names]

    def _reported(self, message: dict[str, Any]) -> bool:
        if message.get("done") is True:
            return True
        names = message.get("tests")
        if isinstance(names, list) and not self._names:
            self._names = [str(name) for name in cast("list[object]", names)[:MAX_TESTS]]
        name = message.get("test")
        if isinstance(name, str) and name not in self._outcomes:
            self._outcomes[name] = Check(name, message.get("passed") is True, str(message.get("message", "")))
        return False

    async def _asked(self, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """What the code says. Code that has ended, or says nothing, has failed; no test can expect that of it."""
        if self.subject is None:
            return {"raised": ["RuntimeError"], "message": "there is no code in another sandbox"}
        await self.subject.send(question)
        answer = await self.subject.receive(timeout_s)
        raised = answer.get("raised")
        if isinstance(raised, list):
            names = [str(name)[:100] for name in cast("list[object]", raised)[:20]]
            return {"raised": names, "message": str(answer.get("message", ""))[:500]}
        return {"value": answer.get("value")}


class EndOfLinesError(Exception):
    """The program has ended, or says what is no line of JSON; says who."""


class Lines:
    """Lines of JSON over a bridge; everything that comes is untrusted."""

    def __init__(self, bridge: Bridge, name: str) -> None:
        self._bridge = bridge
        self._name = name
        self._received = bytearray()

    async def send(self, message: dict[str, Any]) -> None:
        """One object. Raises EndOfLinesError, SandboxLostError."""
        try:
            await self._bridge.write(json.dumps(message).encode() + b"\n")
        except SandboxLostError:
            while await self._bridge.read(timeout_s=LAST_WORD_TIMEOUT_S):
                continue
            raise EndOfLinesError(f"the process of {self._name} has ended") from None

    async def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next object. Raises EndOfLinesError, TimeoutError, SandboxLostError."""
        async with asyncio.timeout(timeout_s):
            while b"\n" not in self._received:
                chunk = await self._bridge.read(timeout_s=timeout_s)
                if not chunk:
                    raise EndOfLinesError(f"the process of {self._name} has ended")
                if len(self._received) > MAX_LINE_BYTES:
                    raise EndOfLinesError(f"{self._name} said more than {MAX_LINE_BYTES} bytes at once")
                self._received += chunk
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        try:
            message: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EndOfLinesError(f"{self._name} said what is no JSON") from error
        if not isinstance(message, dict):
            raise EndOfLinesError(f"{self._name} said what is no object")
        return cast("dict[str, Any]", message)
