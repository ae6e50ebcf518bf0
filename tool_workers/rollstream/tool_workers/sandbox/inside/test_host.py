"""Runs tests whose subject lives in another sandbox: importing it gives a stand-in that asks there.

Plain values come back as plain values. Everything else is a handle that can be asked for attributes, calls and items,
and that equals nothing but itself: what the subject says about equality is never asked for. Tests may be
``unittest.TestCase`` classes or functions named ``test_...``.

Lines of JSON. In: first ``{"nonce", "tests", "subjects", "folder"}``, then answers to questions. Out: questions, and
reports that carry the nonce; what tests print goes nowhere.
"""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import sys
import traceback
import unittest

from rollstream.tool_workers.sandbox.inside.own_streams import take_streams
from rollstream.tool_workers.sandbox.inside.plain_values import NotPlainError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType
    from typing import Any, BinaryIO

MAX_MESSAGE_CHARS = 500


class NotComparableError(TypeError):
    """A test wants to know of an object what only the object itself could tell."""


class Line:
    """The way to the other sandbox."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._exceptions: dict[str, type[BaseException]] = {}

    def receive(self) -> dict[str, Any]:
        """The next message; ends the process at the end."""
        line = self._incoming.readline()
        if not line:
            os._exit(0)
        return json.loads(line)

    def send(self, message: dict[str, Any]) -> None:
        """One message."""
        left = memoryview(json.dumps(message).encode() + b"\n")
        while left:
            left = left[self._outgoing.write(left) :]

    def ask(self, **question: Any) -> Any:
        """What the subject answers; raises what it raises."""
        self.send({"ask": question})
        answer = self.receive()
        if "raised" in answer:
            raise self._exception(answer["raised"])(answer["message"])
        return decode(answer["value"], self._handle)

    def _handle(self, facts: dict[str, Any]) -> Any:
        if facts["exception"]:
            return self._exception(facts["exception"])
        return Remote(self, int(facts["number"]), str(facts["kind"]))

    def _exception(self, names: list[str]) -> type[BaseException]:
        """A class of ours for a class of the subject's, below the built-in one it comes from; never BaseException."""
        name = str(names[0])[:100] if names else "Exception"
        known = getattr(builtins, name, None)
        if isinstance(known, type) and issubclass(known, Exception):
            return known
        if name not in self._exceptions:
            found = (getattr(builtins, str(each), None) for each in names)
            base = next((each for each in found if isinstance(each, type) and issubclass(each, Exception)), Exception)
            self._exceptions[name] = type("".join(filter(str.isidentifier, name)) or "Error", (base,), {})
        return self._exceptions[name]


class Remote:
    """An object of the subject's."""

    def __init__(self, line: Line, number: int, kind: str) -> None:
        object.__setattr__(self, "_line", line)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_kind", kind)

    def _ask(self, do: str, **more: Any) -> Any:
        return self._line.ask(do=do, on=self._number, **more)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return self._ask("get", name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name=name, value=_outgoing(value))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What the subject's object returns."""
        given = {name: _outgoing(value) for name, value in named.items()}
        return self._ask("call", arguments=[_outgoing(each) for each in arguments], named=given)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key=_outgoing(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("put", key=_outgoing(key), value=_outgoing(value))

    def __len__(self) -> int:
        return int(self._ask("len"))

    def __iter__(self) -> Iterator[Any]:
        return RemoteIterator(self._ask("iter"))

    def __next__(self) -> Any:
        return self._ask("next")

    def __str__(self) -> str:
        return str(self._ask("str"))

    def __repr__(self) -> str:
        return str(self._ask("repr"))

    def __bool__(self) -> bool:
        raise NotComparableError(f"the code under test returned a {self._kind}, which is neither true nor false here")

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)


class RemoteIterator:
    """What an object of the subject's yields, one after another; comparing them is the tests' business."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __iter__(self) -> RemoteIterator:
        return self

    def __next__(self) -> Any:
        return next(self._source)


def _outgoing(value: Any) -> Any:
    def handle(each: Any) -> Any:
        if type(each) is Remote:
            return ["handle", object.__getattribute__(each, "_number")]
        raise NotPlainError(f"a {type(each).__name__} cannot be given to the code under test: only plain values can")

    return encode(value, handle)


class SubjectFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes ``import subject`` give a stand-in."""

    def __init__(self, line: Line, subjects: Sequence[str]) -> None:
        self._line = line
        self._subjects = subjects

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """For subjects and what is below them."""
        if any(fullname == each or fullname.startswith(each + ".") for each in self._subjects):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """The usual one."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Its names are looked up there when they are used."""
        remote = self._line.ask(do="import", name=module.__name__)

        def look_up(name: str) -> Any:
            return getattr(remote, name)

        module.__dict__["__getattr__"] = look_up


def run(arguments: dict[str, Any], stdin: BinaryIO) -> None:
    """Run the tests of the first message, and report."""
    incoming, outgoing = take_streams()
    line = Line(os.fdopen(incoming, "rb"), os.fdopen(outgoing, "wb", buffering=0))  # type: ignore[arg-type]
    order = line.receive()
    nonce = order["nonce"]
    if order["subjects"]:
        sys.meta_path.insert(0, SubjectFinder(line, order["subjects"]))
    else:
        sys.path.insert(0, order["folder"])
    os.chdir(order["folder"])
    run_tests(order["tests"], lambda report: line.send({"nonce": nonce, **report}), skips_pass=bool(order["subjects"]))


def run_tests(files: dict[str, str], report: Callable[[dict[str, Any]], None], *, skips_pass: bool) -> None:
    """Say which tests there are, then how each went, then that this was all."""
    suites, functions, broken = collect(files)
    names = [name for _, names in suites for name in names.values()]
    report({"tests": [*names, *functions, *broken]})
    for name, message in broken.items():
        report({"test": name, "passed": False, "message": message})
    for suite, names_of in suites:
        suite.run(Outcomes(names_of, report, skips_pass=skips_pass))
    for name, function in functions.items():
        message = outcome(function, skips_pass=skips_pass)
        report({"test": name, "passed": message is None, "message": message or ""})
    report({"done": True})


class Outcomes(unittest.TestResult):
    """Reports each test of a suite; what it does not report has failed."""

    def __init__(self, names: dict[str, str], report: Callable[[dict[str, Any]], None], *, skips_pass: bool) -> None:
        super().__init__()
        self._names = names
        self._report = report
        self._skips_pass = skips_pass
        self._failed: set[str] = set()

    def stopTest(self, test: unittest.TestCase) -> None:
        """A test that nothing was said against has passed."""
        super().stopTest(test)
        if test.id() not in self._failed:
            self._tell(test, True, "")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        """It has failed."""
        self._tell(test, False, text_of(err[1]))

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        """It raised something else, or what comes before it did."""
        self._tell(test, False, text_of(err[1]))

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        """A part of it has failed, if there is an error."""
        if err is not None:
            self._tell(test, False, text_of(err[1]))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        """It was skipped; where the code shares the process, it may be the code that skips."""
        if not self._skips_pass:
            self._tell(test, False, f"skipped: {reason}"[:MAX_MESSAGE_CHARS])

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        """It should have failed."""
        self._tell(test, False, "succeeded unexpectedly")

    def _tell(self, test: unittest.TestCase, passed: bool, message: str) -> None:
        if not passed:
            self._failed.add(test.id())
        name = self._names.get(test.id())
        if name is not None:
            self._report({"test": name, "passed": passed, "message": message})


Suites = list[tuple[unittest.TestSuite, dict[str, str]]]


def collect(files: dict[str, str]) -> tuple[Suites, dict[str, Callable[[], Any]], dict[str, str]]:
    """Suites with the names of their tests by id, functions by name, and what cannot be run, with the reason."""
    suites: Suites = []
    functions: dict[str, Callable[[], Any]] = {}
    broken: dict[str, str] = {}
    for path, source in sorted(files.items()):
        module: ModuleType = type(sys)(path.rsplit("/", 1)[-1].rsplit(".", 1)[0])
        sys.modules[module.__name__] = module
        try:
            exec(compile(source, path, "exec"), module.__dict__)
        except BaseException as error:  # of the code under test, imported by it
            broken[path] = text_of(error)
            continue
        defined: dict[str, Any] = dict(vars(module))
        for name, value in defined.items():
            if inspect.isclass(value) and issubclass(value, unittest.TestCase):
                if value.__module__ == module.__name__:
                    cases = [value(method) for method in unittest.defaultTestLoader.getTestCaseNames(value)]
                    named = {case.id(): f"{path}::{name}::{case.id().rsplit('.', 1)[-1]}" for case in cases}
                    suites.append((unittest.TestSuite(cases), named))
            elif name.startswith("test") and inspect.isfunction(value):
                if inspect.signature(value).parameters or inspect.isgeneratorfunction(value):
                    broken[f"{path}::{name}"] = "tests with parameters (fixtures) and generators are not supported"
                else:
                    functions[f"{path}::{name}"] = value
    return suites, functions, broken


def outcome(test: Callable[[], Any], *, skips_pass: bool) -> str | None:
    """None: it passed; else why not."""
    try:
        result = test()
        if inspect.iscoroutine(result):
            import asyncio

            asyncio.run(result)
    except unittest.SkipTest as skip:
        return None if skips_pass else f"skipped: {skip}"[:MAX_MESSAGE_CHARS]
    except BaseException as error:  # whatever a test raises is its failure
        return text_of(error)
    return None


def text_of(error: BaseException) -> str:
    """For the report."""
    return "".join(traceback.format_exception_only(type(error), error)).strip()[:MAX_MESSAGE_CHARS]
