"""Runs tests whose subject lives in another sandbox: importing it gives a stand-in that asks there.

Plain values come back as plain values. Everything else is a handle that can be asked for attributes, calls and items,
and that equals nothing but itself: what the subject says about equality, order or truth is never asked for. What
cannot be answered so is no ``Exception``: no test that expects one is content with it. Tests may be
``unittest.TestCase`` classes or functions named ``test_...``.

Lines of JSON. In: first ``{"nonce", "tests", "subjects", "folder"}``, then answers with the ids of their questions.
Out: questions, and reports that carry the nonce; what tests print goes nowhere.
"""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import sys
import threading
import traceback
import unittest

from rollstream.tool_workers.sandbox.inside.own_streams import take_streams, write_all
from rollstream.tool_workers.sandbox.inside.plain_values import NotPlainError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any, BinaryIO

MAX_MESSAGE_CHARS = 500
MAX_CLASSES = 20
FORWARDED = ("__doc__", "__name__", "__qualname__", "__version__")
"""Facts about an object. Other names with such underscores are asked of classes, and code cannot answer for ours."""
REFUSED = (
    *("lt", "le", "gt", "ge", "neg", "pos", "abs", "invert", "int", "float", "complex", "index", "round", "delitem"),
    *("enter", "exit", "aenter", "aexit", "await", "aiter", "instancecheck", "subclasscheck", "mro_entries"),
    *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "and", "or", "xor"),
    *("radd", "rsub", "rmul", "rmatmul", "rtruediv", "rfloordiv", "rmod", "rdivmod", "rpow", "rand", "ror", "rxor"),
    *("lshift", "rshift", "rlshift", "rrshift"),
)
"""Were they simply missing, Python would raise a TypeError, which tests may expect of the code."""


class UnanswerableError(BaseException):
    """What a test wants to know cannot be asked here. Not an Exception: no test can expect it of the code."""


class Line:
    """The way to the other sandbox."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._exceptions: dict[tuple[str, ...], type[BaseException]] = {}
        self._remotes: dict[int, Remote] = {}
        self._questions = 0
        self._asking = threading.Lock()
        self._sending = threading.Lock()

    def receive(self) -> dict[str, Any]:
        """The next message; ends the process at the end, and where a test's alarm has cost a part of it."""
        line = self._incoming.readline()
        try:
            return json.loads(line)
        except ValueError:
            os._exit(0)

    def send(self, message: dict[str, Any]) -> None:
        """One message."""
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            write_all(self._outgoing.fileno(), line)

    def ask(self, do: str, **question: Any) -> Any:
        """What the subject answers; raises what it raises, and UnanswerableError."""
        with self._asking:
            self._questions += 1
            number = self._questions
            self.send({"ask": {"do": do, **question}, "id": number})
            answer = self.receive()
            while answer.get("id") != number:  # to a question that nobody waits for: a test's alarm went off
                answer = self.receive()
        if "raised" in answer:
            raise self._raised(answer, may_stop=do == "next")
        if "value" not in answer:
            raise UnanswerableError(f"the code under test cannot answer: {answer.get('failed')}")
        return self._decoded(answer["value"])

    def _decoded(self, value: Any) -> Any:
        try:
            return decode(value, self._handle)
        except Exception as error:  # whatever the code has made up
            raise UnanswerableError(f"the code under test answers what is no value: {error}") from None

    def _raised(self, answer: dict[str, Any], *, may_stop: bool) -> BaseException:
        kind = self._exception(answer["raised"])
        if issubclass(kind, (StopIteration, StopAsyncIteration)) and not may_stop:
            # Out of an ordinary call it would end the test's own loops: `all(map(...))` of nothing is true.
            kind = named(kind.__name__, RuntimeError)
        arguments = answer["arguments"]
        given = [answer["message"]] if arguments is None else self._decoded(["list", arguments])
        return made(kind, given, answer["message"])

    def _handle(self, facts: dict[str, Any]) -> Any:
        if facts["exception"]:
            return self._exception([each for each in facts["exception"] if isinstance(each, str)])
        number = int(facts["number"])
        if number not in self._remotes:
            self._remotes[number] = stand_in(Subject(self, number, str(facts["kind"])), facts["does"])
        return self._remotes[number]

    def _exception(self, names: Sequence[str]) -> type[BaseException]:
        """A class for one of the subject's, below those that it is below; never BaseException.

        Built-in ones are themselves. Of those beside Exception only SystemExit is: tests may expect it, and nothing
        here ends by it.
        """
        kind: type[BaseException] = Exception
        names = tuple(names[:MAX_CLASSES])
        for place in reversed(range(len(names))):
            known = getattr(builtins, names[place], None)
            if isinstance(known, type) and issubclass(known, (Exception, SystemExit)):
                kind = known
            else:
                own = "".join(filter(str.isidentifier, names[place])) or "Error"
                kind = self._exceptions.setdefault(names[place:], named(own, kind))
        return kind


def named(name: str, base: type[BaseException], **members: Any) -> type[BaseException]:
    """A class of ours."""
    kind: Any = type(name, (base,), members)
    return kind


def made(kind: type[BaseException], arguments: Sequence[Any], message: str) -> BaseException:
    """An exception with this text; of a base of its class where that wants other arguments."""
    for base in kind.__mro__:
        for given in (arguments, [message]):
            try:
                error = base(*given)
                if base is kind and str(error)[:MAX_MESSAGE_CHARS] == message:
                    return error
                return named(kind.__name__, base, __str__=lambda _: message)(*given)  # pyright: ignore[reportUnknownLambdaType]
            except Exception:
                continue
    return UnanswerableError(message)


class Subject:
    """Where an object of the subject's is."""

    def __init__(self, line: Line, number: int, kind: str) -> None:
        self.line = line
        self.number = number
        self.kind = kind

    def ask(self, do: str, **more: Any) -> Any:
        """A question about it."""
        return self.line.ask(do, on=self.number, **more)


class Remote:
    """An object of the subject's. Classes below this one have what it can do; see ``stand_in``."""

    __subject__: Subject

    def __init__(self, subject: Subject) -> None:
        object.__setattr__(self, "__subject__", subject)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in FORWARDED:
            raise AttributeError(name)
        return self.__subject__.ask("get", name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__subject__.ask("set", name=name, value=_outgoing(value))

    def __str__(self) -> str:
        return str(self.__subject__.ask("str"))

    def __repr__(self) -> str:
        return str(self.__subject__.ask("repr"))

    def __bool__(self) -> bool:
        kind = self.__subject__.kind
        raise UnanswerableError(f"the code under test returned a {kind}, which is neither true nor false here")

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)


def _call(self: Remote, *arguments: Any, **named: Any) -> Any:
    given = {name: _outgoing(value) for name, value in named.items()}
    return self.__subject__.ask("call", arguments=[_outgoing(each) for each in arguments], named=given)


def _get_item(self: Remote, key: Any) -> Any:
    return self.__subject__.ask("item", key=_outgoing(key))


def _set_item(self: Remote, key: Any, value: Any) -> None:
    self.__subject__.ask("put", key=_outgoing(key), value=_outgoing(value))


def _length(self: Remote) -> int:
    return int(self.__subject__.ask("len"))


def _iterator(self: Remote) -> Any:
    return self.__subject__.ask("iter")


def _next(self: Remote) -> Any:
    return self.__subject__.ask("next")


def _documentation(self: Remote) -> Any:
    return self.__subject__.ask("get", name="__doc__")


def _refuse(self: Remote, *_: Any) -> Any:
    raise UnanswerableError(f"the code under test returned a {self.__subject__.kind}, which has no operators here")


ABILITIES: dict[str, Callable[..., Any]] = {
    "__call__": _call,
    "__getitem__": _get_item,
    "__setitem__": _set_item,
    "__len__": _length,
    "__iter__": _iterator,
    "__next__": _next,
}
ALWAYS: dict[str, Any] = {"__doc__": property(_documentation), **{f"__{name}__": _refuse for name in REFUSED}}


def stand_in(subject: Subject, abilities: Sequence[str]) -> Remote:
    """One that can be called, iterated and so on only if its object can: tests ask for that as well."""
    able = {name: ABILITIES[name] for name in abilities}
    return type("Remote", (Remote,), {**ALWAYS, **able})(subject)


def _outgoing(value: Any) -> Any:
    def handle(each: Any) -> Any:
        if isinstance(each, Remote):
            return ["handle", each.__subject__.number]
        raise NotPlainError(f"a {type(each).__name__} cannot be given to the code under test: only plain values can")

    try:
        return encode(value, handle)
    except NotPlainError as error:
        raise UnanswerableError(str(error)) from None


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
        remote = self._line.ask("import", name=module.__name__)

        def look_up(name: str) -> Any:
            if name == "__all__":
                return offered(self._line.ask("names", name=module.__name__))
            return getattr(remote, name)

        module.__dict__["__getattr__"] = look_up
        module.__dict__["__doc__"] = getattr(remote, "__doc__", None)


def offered(names: Any) -> list[str]:
    """For ``import *``: never what the importing module has already, nor what is built in."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith((__name__, "importlib.")):
        frame = frame.f_back
    taken = {*vars(builtins), *(frame.f_globals if frame is not None else ())}
    return [name for name in names if isinstance(name, str) and name not in taken]


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
        outcomes = Outcomes(names_of, report, skips_pass=skips_pass)
        try:
            suite.run(outcomes)
        except BaseException as error:  # unittest lets some through, SystemExit out of setUpClass for one
            outcomes.fail_all(text_of(error))
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

    def fail_all(self, message: str) -> None:
        """What is around them has failed."""
        for name in self._names.values():
            self._report({"test": name, "passed": False, "message": message})

    def stopTest(self, test: unittest.TestCase) -> None:
        """A test that nothing was said against has passed."""
        super().stopTest(test)
        if test.id() not in self._failed:
            self._tell(test, True, "")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        """It has failed."""
        self._tell(test, False, text_of(err[1]))

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        """It raised something else; or what is around the tests of its class did."""
        if test.id() in self._names:
            self._tell(test, False, text_of(err[1]))
        else:
            self.fail_all(text_of(err[1]))

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
                    methods = unittest.defaultTestLoader.getTestCaseNames(value)
                    never_run = [method for method in methods if is_never_run(value, method)]
                    broken.update({f"{path}::{name}::{method}": "unittest would never run it" for method in never_run})
                    cases = [value(method) for method in methods if method not in never_run]
                    named = {case.id(): f"{path}::{name}::{case.id().rsplit('.', 1)[-1]}" for case in cases}
                    suites.append((unittest.TestSuite(cases), named))
            elif (
                inspect.isclass(value)
                and name.startswith("Test")
                and any(key.startswith("test") for key in vars(value))
            ):
                broken[f"{path}::{name}"] = "a class of tests must be a unittest.TestCase"
            elif name.startswith("test") and inspect.isfunction(value):
                if inspect.signature(value).parameters or is_generator(value):
                    broken[f"{path}::{name}"] = "tests with parameters (fixtures) and generators are not supported"
                else:
                    functions[f"{path}::{name}"] = value
    return suites, functions, broken


def is_generator(function: Any) -> bool:
    """Called, it does nothing yet."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def is_never_run(case: type[unittest.TestCase], name: str) -> bool:
    """Whether unittest would call this method, throw away what waits to be run, and let it pass."""
    method = getattr(case, name)
    if inspect.iscoroutinefunction(method):
        return not issubclass(case, unittest.IsolatedAsyncioTestCase)
    return is_generator(method)


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
