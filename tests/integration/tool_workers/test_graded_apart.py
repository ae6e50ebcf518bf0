"""Tests in one sandbox and the code in another: what code does to the line between them, and to tests that trust it."""

from __future__ import annotations

import asyncio
import json

import pytest
from grading_desk import HONEST, TESTS, Desk, leave

from rollstream.tool_workers.grading.artefacts import Artefacts
from rollstream.tool_workers.grading.rooms import GradingRooms
from rollstream.tool_workers.grading.unit_tests import UnitTests, grade_unit_tests
from rollstream.tool_workers.sandbox.bridge import SupervisedBridge
from rollstream.tool_workers.sandbox.replies import SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner, SupervisorProcess
from rollstream.tool_workers.settings import SandboxSettings

pytestmark = pytest.mark.sandbox

SAY = (
    "import os, random, sys, threading, time\n"
    "def say(data):\n"
    "    for fd in range(3, 300):\n"
    "        try: os.write(fd, data)\n"
    "        except OSError: pass\n"
)
MANY_CALLS = {
    "test_many.py": "import solution\ndef test_many():\n    double = solution.double\n"
    "    for n in range(2000): double('x' * 2000)\n    assert double(2) == 4, 'wrong'\n"
}
RUBBISH = (
    b'{"value": 1}\n',
    b"",
    b"\n",
    b"{}\n",
    b"[]\n",
    b"null\n",
    b'{"value": ',
    b'{"value": ["handle", 5]}\n',
    b'{"value": ["handle", {"number": 1, "kind": "x", "does": ["__eq__"], "exception": []}]}\n',
    b'{"value": ["handle", {"exception": [[], "Exception"]}]}\n',
    b'{"raised": [], "message": 3}\n',
    b'{"raised": [["StopIteration"], "SystemExit"], "arguments": 7}\n',
    b'{"raised": ["KeyError"], "arguments": [["list", 5]], "message": "k"}\n',
    b'{"value": ' + b"[" * 960 + b"]" * 960 + b"}\n",
    b'{"value": ' + b"9" * 5000 + b"}\n",
    b'{"ask": {"do": "import", "name": "os"}}\n',
    b'{"done": true}\n{"nonce": null, "done": true}\n',
    b"\xff\xfe\x00",
    b"x" * 60_000,
)
FUZZED = SAY + (
    "chance = random.Random({seed})\n"
    "def double(x):\n"
    "    if chance.random() < 0.5: return x\n"
    "    for _ in range(chance.choice([1, 1, 2, 50, 400])): say(chance.choice({rubbish!r}))\n"
    "    step = chance.randrange(9)\n"
    "    if step == 0: os._exit(0)\n"
    "    if step == 1: threading.Thread(target=os._exit, args=(1,)).start()\n"
    "    if step == 2: os.closerange(3, 300)\n"
    "    if step == 3: time.sleep(chance.random() / 500); os._exit(3)\n"
    "    if step == 4: os.kill(os.getpid(), 9)\n"
    "    if step == 5: threading.Thread(target=lambda: [say(b'x' * 9999) for _ in range(2000)]).start()\n"
    "    if step == 6: os.fork()\n"
    "    return x\n"
)


@pytest.mark.parametrize("part", range(5))
async def test_whatever_code_says_unasked_and_whenever_it_ends_is_a_failed_test_and_no_lost_sandbox(
    part: int, desk: Desk
) -> None:
    for seed in range(6 * part, 6 * part + 6):
        await leave(desk, solution_dot_py=FUZZED.format(seed=seed, rubbish=RUBBISH))
        grade = await desk.reward("unit_tests", tests=MANY_CALLS, test_timeout_s=1)
        assert (seed, grade.reward) == (seed, 0.0)


ENDS = {
    "answers ahead and ends": "say(b'{\"value\": 1}\\n' * 50); os._exit(0)",
    "answers ahead and ends soon": "say(b'{\"value\": 1}\\n' * 50); time.sleep(0.001); os._exit(0)",
    "answers far ahead and ends": "say(b'{\"value\": 1}\\n' * 3000); os._exit(0)",
    "ends after its answer": "threading.Timer(0.0004, os._exit, (1,)).start()",
    "hears nothing more": "say(b'{\"value\": 1}\\n' * 9000); os.closerange(0, 300); time.sleep(60)",
    "floods and hears nothing": "[say(b'{\"value\": 1}\\n' * 5000) for _ in range(500)]",
}


@pytest.mark.parametrize("end", ENDS)
async def test_code_that_ends_while_it_is_asked_has_failed(end: str, desk: Desk) -> None:
    await leave(desk, solution_dot_py=SAY + f"calls = []\ndef double(x):\n    calls.append(x)\n    {ENDS[end]}\n")
    for _ in range(3):
        assert (await desk.reward("unit_tests", tests=MANY_CALLS, test_timeout_s=2)).reward == 0.0


@pytest.mark.parametrize("lines", [1, 200, 20_000])
async def test_questions_in_the_place_of_reports_end_the_tests(lines: int, desk: Desk) -> None:
    await leave(
        desk, solution_dot_py=SAY + f"def double(x):\n    say(b'{{\"ask\": {{}}}}\\n' * {lines})\n    return 2 * x\n"
    )
    grade = await desk.reward("unit_tests", is_isolated=False)
    assert (grade.reward, "no report" in grade.report) == (0.0, True)


async def test_more_input_than_code_reads_is_its_failure(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollstream.tool_workers.sandbox.bridge.WRITE_TIMEOUT_S", 0.5)
    await leave(desk, solution_dot_py=SAY + "def double(x):\n    say(b'{\"value\": 1}\\n' * 9)\n    time.sleep(60)\n")
    tests = {
        "test_big.py": "from solution import double\ndef test_big():\n    for _ in range(9): double('x' * 3_000_000)\n"
    }
    grade = await desk.reward("unit_tests", tests=tests, test_timeout_s=10)
    assert (grade.reward, "takes no input" in grade.report) == (0.0, True), grade.report


class Watched(BubblewrapSpawner):
    """Keeps what it has started."""

    def __init__(self, limits: SandboxSettings) -> None:
        super().__init__(limits)
        self.processes: list[SupervisorProcess] = []

    def spawn(self) -> SupervisorProcess:
        self.processes.append(super().spawn())
        return self.processes[-1]


MANY_QUESTIONS = {
    "test_many.py": "import solution\ndef test_many():\n    for n in range(200): assert solution.double(n) == 2 * n\n"
}
"""So that whichever is killed is still needed, however late that is noticed."""


@pytest.mark.parametrize("whose", ["tests", "code"])
@pytest.mark.parametrize("after_writes", [1, 2, 3, 6])
async def test_a_sandbox_that_is_killed_from_outside_is_lost(
    whose: str, after_writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = SandboxSettings()
    spawner = Watched(limits)
    write = SupervisedBridge.write
    writes = 0

    async def write_once_more(bridge: SupervisedBridge, data: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes == after_writes:
            spawner.processes[0 if whose == "tests" else 1].kill()
        await write(bridge, data)

    monkeypatch.setattr(SupervisedBridge, "write", write_once_more)
    artefacts = Artefacts({"solution.py": HONEST.encode()})
    async with (
        SandboxFactory(spawner, limits, max_running_programs=2) as factory,
        GradingRooms(factory, max_gradings=1).room() as room,
    ):
        with pytest.raises(SandboxLostError):
            await grade_unit_tests(UnitTests(tests=TESTS | MANY_QUESTIONS, modules=["solution"]), artefacts, room)


def test_of(*lines: str) -> dict[str, str]:
    body = "".join(f"        {line}\n" for line in lines)
    return {"test_it.py": f"import unittest, solution\nclass It(unittest.TestCase):\n    def test_it(self):\n{body}"}


test_of.__test__ = False  # type: ignore[attr-defined]

TRICKS = {
    "ends the loops of tests": (
        "def f(x):\n    raise StopIteration\n",
        "for got, wanted in zip(map(solution.f, [1, 2]), [2, 4]): self.assertEqual(got, wanted)",
    ),
    "ends what looks at all": ("def f(x):\n    raise StopIteration\n", "assert all(map(solution.f, [1, 2]))"),
    "ends what looks at all by a class of its own": (
        "class Over(StopIteration): pass\ndef f(x):\n    raise Over\n",
        "self.assertEqual(list(filter(solution.f, [1, 2])), [])",
    ),
    "ends an asynchronous loop": ("def f(x):\n    raise StopAsyncIteration\n", "assert all(map(solution.f, [1]))"),
    "wants an argument too few": (
        "def f(x):\n    b'\\xff'.decode()\n",
        "with self.assertRaises(TypeError): solution.f(1)",
    ),
    "raises many at once": (
        "def f(x):\n    raise ExceptionGroup('many', [OSError()])\n",
        "with self.assertRaises(TypeError): solution.f(1)",
    ),
    "skips": ("import unittest\ndef f(x):\n    raise unittest.SkipTest\n", "self.assertEqual(solution.f(1), 2)"),
    "skips by name": ("class SkipTest(Exception): pass\ndef f(x):\n    raise SkipTest\n", "solution.f(1)"),
    "stops the run": (
        "import unittest.case\ndef f(x):\n    raise unittest.case._ShouldStop\n",
        "self.assertEqual(solution.f(1), 2)",
    ),
    "succeeds unexpectedly": (
        "import unittest.case\ndef f(x):\n    raise getattr(unittest.case, '_UnexpectedSuccess', KeyError)\n",
        "self.assertEqual(solution.f(1), 2)",
    ),
    "interrupts": ("def f(x):\n    raise KeyboardInterrupt\n", "self.assertEqual(solution.f(1), 2)"),
    "leaves a generator": ("def f(x):\n    raise GeneratorExit\n", "self.assertEqual(solution.f(1), 2)"),
    "exits": ("def f(x):\n    raise SystemExit(0)\n", "self.assertEqual(solution.f(1), 2)"),
    "cannot be asked for truth": (
        "def f(x):\n    return object()\n",
        "with self.assertRaises(TypeError): not solution.f(1)",
    ),
    "cannot be asked for order": (
        "class Money:\n    def __init__(self, of): pass\n    def __lt__(self, other): return True\n",
        "with self.assertRaises(TypeError): solution.Money('EUR') < solution.Money('USD')",
    ),
    "cannot be added": (
        "class Vector:\n    def __add__(self, other): return self\n",
        "with self.assertRaises(TypeError): solution.Vector() + 'x'",
        "with self.assertRaises(TypeError): 1 + solution.Vector()",
    ),
    "is as near as anything": (
        "class Near:\n    def __sub__(self, other): return 0\n    __rsub__ = __sub__\ndef f(x):\n    return Near()\n",
        "self.assertAlmostEqual(solution.f(1), 2.0)",
    ),
    "cannot be given what is not plain": (
        "def f(x):\n    return x\n",
        "with self.assertRaises(Exception): solution.f(object())",
    ),
    "answers what is no value": (
        SAY + 'def f(x):\n    say(b\'{"value": ["list", 5]}\\n\')\n    time.sleep(60)\n',
        "with self.assertRaises(Exception): solution.f(1)",
    ),
    "answers nothing": (
        SAY + "def f(x):\n    say(b'{}\\n')\n    time.sleep(60)\n",
        "with self.assertRaises(Exception): solution.f(1)",
        "self.assertIsNone(solution.f(1))",
    ),
    "ends, and is nothing": ("import os\ndef f(x):\n    os._exit(0)\n", "self.assertIsNone(solution.f(1))"),
    "ends, and is false": ("import os\ndef f(x):\n    os._exit(0)\n", "self.assertFalse(solution.f(1))"),
    "claims another class": (
        "class Number:\n    __class__ = int\n    def __eq__(self, x): return True\ndef f(x):\n    return Number()\n",
        "self.assertIsInstance(solution.f(1), int)",
    ),
    "cannot be called": ("def f(x):\n    return object()\n", "self.assertTrue(callable(solution.f(1)))"),
    "cannot be iterated": (
        "def f(x):\n    return object()\n",
        "import collections.abc",
        "self.assertIsInstance(solution.f(1), collections.abc.Iterable)",
    ),
    "says nothing about itself": ("def f(x): return x\n", "self.assertTrue(solution.f.__doc__)"),
    "says nothing about its module": ("def f(x): return x\n", "self.assertTrue(solution.__doc__)"),
    "returns the same": (
        "class Stack:\n    def copy(self): return self\n",
        "stack = solution.Stack()",
        "self.assertIsNot(stack.copy(), stack)",
    ),
    "answers what was asked before": (
        SAY + "def f(x):\n    time.sleep(1.2 if x == 1 else 0)\n    return x\n",
        "import signal; f = solution.f",
        "def ring(*_): raise TimeoutError",
        "signal.signal(signal.SIGALRM, ring)",
        "signal.setitimer(signal.ITIMER_REAL, 0.3)",
        "with self.assertRaises(TimeoutError): f(1)",
        "self.assertEqual(f(2), 1)",
    ),
}


@pytest.mark.parametrize("trick", TRICKS)
async def test_a_trick_is_worth_nothing(trick: str, desk: Desk) -> None:
    code, *lines = TRICKS[trick]
    await leave(desk, solution_dot_py=code)
    grade = await desk.reward("unit_tests", tests=test_of(*lines), test_timeout_s=4)
    assert grade.reward == 0.0


HONEST_WORK = {
    "exits": (
        "import sys\ndef f(x):\n    sys.exit(x)\n",
        "with self.assertRaises(SystemExit) as caught: solution.f(3)",
        "self.assertEqual(caught.exception.code, 3)",
    ),
    "raises with arguments": (
        "def f(x):\n    return {}[x]\n",
        "with self.assertRaises(KeyError) as caught: solution.f('k')",
        "self.assertEqual((caught.exception.args, str(caught.exception)), (('k',), \"'k'\"))",
    ),
    "cannot decode": (
        "def f(x):\n    return x.decode()\n",
        "with self.assertRaises(UnicodeDecodeError) as caught: solution.f(b'a\\xff')",
        "self.assertEqual((caught.exception.start, caught.exception.object), (1, b'a\\xff'))",
        "with self.assertRaises(ValueError): solution.f(b'\\xff')",
    ),
    "misses a file": (
        "def f(x):\n    return open(x)\n",
        "with self.assertRaisesRegex(FileNotFoundError, 'missing.txt') as caught: solution.f('missing.txt')",
        "self.assertEqual(caught.exception.errno, 2)",
    ),
    "has exceptions of its own": (
        (
            "class Problem(Exception): pass\n"
            "class Full(Problem):\n    def __init__(self, room):\n        self.room = room\n"
            "    def __str__(self): return f'no room but {self.room}'\n"
            "def f(x):\n    raise Full(x)\n"
        ),
        "with self.assertRaises(solution.Problem): solution.f(3)",
        "with self.assertRaisesRegex(solution.Full, 'no room but 3'): solution.f(3)",
        "with self.assertRaises(AssertionError):",
        "    with self.assertRaises(solution.Full): raise AssertionError",
    ),
    "raises many at once": (
        "def f(x):\n    raise ExceptionGroup('many', [OSError()])\n",
        "with self.assertRaisesRegex(Exception, 'many'): solution.f(1)",
    ),
    "counts down": (
        "def f(x):\n    yield from range(x)\n",
        "numbers = solution.f(2)",
        "self.assertIs(iter(numbers), numbers)",
        "self.assertEqual((next(numbers), next(numbers), next(numbers, None)), (0, 1, None))",
        "with self.assertRaises(StopIteration): next(numbers)",
    ),
    "has items but no iterator": (
        "class Pair:\n    def __getitem__(self, n): return [3, 4][n]\n",
        "self.assertEqual(list(solution.Pair()), [3, 4])",
    ),
    "is one": (
        "class One: pass\none = One()\none.self = one\ndef f():\n    return one\n",
        "self.assertIs(solution.f(), solution.one)",
        "self.assertEqual(solution.one.self, solution.f())",
        "self.assertIsNot(solution.One(), solution.One())",
    ),
    "describes itself": (
        '"""Doubles."""\n__version__ = "1.2"\ndef f(x):\n    """Twice."""\n',
        "self.assertEqual((solution.__doc__, solution.f.__doc__, solution.f.__name__), ('Doubles.', 'Twice.', 'f'))",
        "self.assertEqual((solution.__version__, callable(solution.f)), ('1.2', True))",
    ),
    "is used by many threads": (
        "def f(x):\n    return 2 * x\n",
        "from concurrent.futures import ThreadPoolExecutor",
        "with ThreadPoolExecutor(8) as pool: self.assertEqual(sum(pool.map(solution.f, range(300))), 300 * 299)",
    ),
}


@pytest.mark.parametrize("work", HONEST_WORK)
async def test_honest_work_is_worth_all_of_it(work: str, desk: Desk) -> None:
    code, *lines = HONEST_WORK[work]
    await leave(desk, solution_dot_py=code)
    grade = await desk.reward("unit_tests", tests=test_of(*lines))
    assert grade.reward == 1.0, grade.report


async def test_all_names_of_the_code_can_be_imported_but_none_that_the_tests_have(desk: Desk) -> None:
    tests = {
        "test_star.py": "import unittest\nfrom math import floor\nfrom solution import *\n"
        "from unittest import TestCase\nclass Star(TestCase):\n"
        "    def test_double(self):\n        for n in range(3): self.assertEqual(double(n), 2 * n)\n"
        "    def test_floor(self): self.assertEqual(floor(2.5), 2)\n"
    }
    await leave(desk, solution_dot_py=HONEST)
    assert (await desk.reward("unit_tests", tests=tests)).reward == 1.0
    hidden = "def double(x): return 2 * x\ndef other(x): return x\n__all__ = ['other']\n"
    await leave(desk, solution_dot_py=hidden)
    assert (await desk.reward("unit_tests", tests=tests)).reward == 0.0
    stolen = "def range(n): return ()\ndef floor(x): return 2\nclass TestCase: pass\nunittest = __build_class__ = 1\n"
    for listed in ("", "__all__ = ['range', 'floor', 'TestCase', 'unittest', 'double', '__name__', 7]\n"):
        await leave(desk, solution_dot_py=f"def double(x): return x\n{stolen}{listed}")
        grade = await desk.reward("unit_tests", tests=tests, all_or_nothing=False)
        assert (grade.components["passed"], grade.components["total"]) == (1.0, 2.0), grade.report


async def test_what_fails_around_tests_fails_them(desk: Desk) -> None:
    around = (
        "import unittest, solution\nclass {name}(unittest.TestCase):\n"
        "    @classmethod\n    def {fixture}(cls): solution.double(1)\n    def test_it(self): pass\n"
        "class Beside(unittest.TestCase):\n    def test_it(self): pass\n"
    )
    await leave(desk, solution_dot_py="def double(x):\n    raise SystemExit(0)\n")
    for fixture in ("setUpClass", "tearDownClass"):
        tests = {"test_around.py": around.format(name="Around", fixture=fixture)}
        grade = await desk.reward("unit_tests", tests=tests, all_or_nothing=False)
        assert (grade.components["passed"], grade.components["total"]) == (1.0, 2.0), grade.report
    await leave(desk, solution_dot_py="def double(x):\n    raise ValueError\n")
    tests = {"test_around.py": around.format(name="Around", fixture="tearDownClass")}
    assert (await desk.reward("unit_tests", tests=tests, all_or_nothing=False)).reward == 0.5


async def test_a_test_that_would_never_run_has_failed(desk: Desk) -> None:
    never = {
        "waits": "class Never(unittest.TestCase):\n    async def test_it(self): assert False\n",
        "yields": "class Never(unittest.TestCase):\n    def test_it(self):\n        yield 1\n",
        "waits and yields": "async def test_it():\n    yield 1\n",
        "is in no case": "class TestNever:\n    def test_it(self): assert False\n",
        "is below an object of the code": "class Never(solution.double, unittest.TestCase): pass\n",
    }
    await leave(desk, solution_dot_py=HONEST)
    for what, source in never.items():
        tests = {"test_never.py": f"import unittest, solution\n{source}def test_beside(): pass\n"}
        assert (what, (await desk.reward("unit_tests", tests=tests)).reward) == (what, 0.0)


async def test_a_grade_of_many_at_once_is_each_ones_own(desk: Desk) -> None:
    good, bad = {"solution.py": HONEST}, {"solution.py": SAY + "def double(x):\n    say(b'x'); os._exit(0)\n"}
    grades = await asyncio.gather(*(desk.grade("unit_tests", artefacts=(), files=each) for each in [good, bad] * 3))
    assert [json.loads(each.content)["reward"] for each in grades] == [1.0, 0.0] * 3


async def no_longer_busy(process: SupervisorProcess) -> None:
    used_s, before_s = process.facts.cpu_s() or 0.0, -1.0
    while used_s > before_s:
        await asyncio.sleep(0.5)
        used_s, before_s = process.facts.cpu_s() or 0.0, used_s


async def test_a_program_that_is_not_listened_to_is_watched_all_the_same() -> None:
    limits = SandboxSettings(call_cpu_s=1)
    spawner = Watched(limits)
    async with SandboxFactory(spawner, limits, max_running_programs=1) as factory:
        sandbox = await factory.open()
        source = (
            "import os, threading, time\n"
            "def flood():\n    while True: os.write(1, b'x' * 65536)\n"
            "threading.Thread(target=flood, daemon=True).start()\n"
            "while time.process_time() < 3: pass\n"
            "os.write(2, b'never stopped')\ntime.sleep(60)\n"
        )
        bridge = await sandbox.bridge("/usr/bin/python3", "-c", source)
        await no_longer_busy(spawner.processes[0])
        while await bridge.read(timeout_s=10):
            continue
        assert bridge.end is not None
        assert (bridge.end.cause, bridge.complaint) == ("cpu", "")
        await sandbox.close()
