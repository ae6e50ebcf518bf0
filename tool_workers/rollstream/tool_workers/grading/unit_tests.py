"""Tests in one sandbox, the code under test in another, and between them nothing but plain values.

The code cannot patch the test runner, read the tests, end their process, or answer for their outcome: it is not there.
Reports count only with a word that is new for each grading, and time is kept here. A process that ends, is silent or
talks rubbish is the code's doing and has failed; only a sandbox that is lost is infrastructure.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from rollstream.tool_workers.functions import ToolError
from rollstream.tool_workers.grading.artefacts import Artefacts, check_paths
from rollstream.tool_workers.grading.rooms import Room
from rollstream.tool_workers.grading.verdict import Check, Verdict, verdict_of
from rollstream.tool_workers.sandbox.bridge import Bridge, NoInputTakenError
from rollstream.tool_workers.sandbox.bubblewrap import WORKSPACE

MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_TESTS = 10_000
MAX_CLASSES = 20
MAX_NAME_CHARS = 100
MAX_MESSAGE_CHARS = 500


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
        code_host = await subject_sandbox.host("code_host", {"folder": WORKSPACE})
        subject = Lines(code_host, "the code under test", given.test_timeout_s)
    else:
        tests_sandbox = await room.open(artefacts.beside_tests(given.tests), given.tests)
    tests = Lines(await tests_sandbox.host("test_host", {}), "the tests", given.test_timeout_s)
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
    _outcomes: dict[str, Check | None] = field(default_factory=dict[str, Check | None])
    _nonce: str = field(default_factory=lambda: secrets.token_hex(16))

    async def run(self) -> None:
        """Until the tests are done, or one of the two has nothing more to say.

        Raises:
            SandboxLostError: one of the sandboxes is gone, which nobody's code has done.
        """
        try:
            await self._until_done()
        except TimeoutError:
            self.note = f"a test took longer than {self.given.test_timeout_s:g} s"
        except EndOfLinesError as end:
            self.note = str(end)

    async def _until_done(self) -> None:
        subjects = self.given.modules if self.subject is not None else []
        order = {"nonce": self._nonce, "tests": self.given.tests, "subjects": subjects, "folder": WORKSPACE}
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self.given.test_timeout_s) as clock:
            await self.tests.send(order)
            while True:
                message = await self.tests.receive()
                if message.get("nonce") == self._nonce:
                    clock.reschedule(loop.time() + self.given.test_timeout_s)
                    if self._reported(message):
                        return
                elif self.subject is not None and "ask" in message:
                    await self.tests.send(await self._asked(self.subject, message))
                else:
                    raise EndOfLinesError("the tests said what is no report")

    def checks(self) -> list[Check]:
        """One per test; what was not reported has failed. Without a list of tests, that alone is the failure."""
        if not self._outcomes:
            return [Check("tests", False, self.note)]
        return [outcome or Check(name, False, self.note) for name, outcome in self._outcomes.items()]

    def _reported(self, message: dict[str, Any]) -> bool:
        """Whether it was the last report. What has failed once stays so, whatever is said of it later."""
        if message.get("done") is True:
            return True
        names = message.get("tests")
        if isinstance(names, list) and not self._outcomes:
            if len(cast("list[object]", names)) > MAX_TESTS:
                raise EndOfLinesError(f"there are more than {MAX_TESTS} tests")
            self._outcomes = {name: None for name in cast("list[object]", names) if isinstance(name, str)}
        name = message.get("test")
        if isinstance(name, str) and name in self._outcomes:
            before = self._outcomes[name]
            if before is None or before.passed:
                self._outcomes[name] = Check(name, message.get("passed") is True, _text(message.get("message")))
        return False

    async def _asked(self, subject: Lines, message: dict[str, Any]) -> dict[str, Any]:
        """What the code says. Code that has ended, or says nothing, has failed; no test can expect that of it."""
        await subject.send(message["ask"])
        answer = await subject.receive()
        reply: dict[str, Any] = {"id": message.get("id")}
        raised = answer.get("raised")
        if isinstance(raised, list):
            classes = cast("list[object]", raised)[:MAX_CLASSES]
            reply["raised"] = [name[:MAX_NAME_CHARS] for name in classes if isinstance(name, str)]
            reply["arguments"] = answer.get("arguments")
            reply["message"] = _text(answer.get("message"))
        elif "value" in answer:
            reply["value"] = answer["value"]
        else:
            reply["failed"] = _text(answer.get("failed"))
        return reply


def _text(said: object) -> str:
    return said[:MAX_MESSAGE_CHARS] if isinstance(said, str) else ""


class EndOfLinesError(Exception):
    """The program has ended, or says what is no line of JSON; says who."""


class Lines:
    """Lines of JSON over a bridge; everything that comes is untrusted."""

    def __init__(self, bridge: Bridge, name: str, timeout_s: float) -> None:
        self._bridge = bridge
        self._name = name
        self._timeout_s = timeout_s
        self._lines: deque[bytearray] = deque()
        self._rest = bytearray()

    async def send(self, message: dict[str, Any]) -> None:
        """One object. Raises EndOfLinesError, SandboxLostError."""
        try:
            line = json.dumps(message).encode() + b"\n"
        except RecursionError as error:
            raise EndOfLinesError("what was said is nested too deep") from error
        try:
            await self._bridge.write(line)
        except NoInputTakenError as error:
            raise EndOfLinesError(f"{self._name} takes no input") from error

    async def receive(self) -> dict[str, Any]:
        """The next object. Raises EndOfLinesError, TimeoutError, SandboxLostError."""
        while not self._lines:
            chunk = await self._bridge.read(timeout_s=self._timeout_s)
            if not chunk:
                raise EndOfLinesError(f"the process of {self._name} has ended")
            if len(self._rest) > MAX_LINE_BYTES:
                raise EndOfLinesError(f"{self._name} said more than {MAX_LINE_BYTES} bytes at once")
            self._rest += chunk
            if b"\n" in chunk:
                *lines, self._rest = self._rest.split(b"\n")
                self._lines.extend(lines)
        try:
            message: object = json.loads(self._lines.popleft())
        except (ValueError, RecursionError) as error:
            raise EndOfLinesError(f"{self._name} said what is no JSON") from error
        if not isinstance(message, dict):
            raise EndOfLinesError(f"{self._name} said what is no object")
        return cast("dict[str, Any]", message)
