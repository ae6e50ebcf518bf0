"""Runs code under test for tests that run elsewhere: imports, calls and looks up what it is asked to.

The code shares this process and can answer what it likes: it can lie about its own values, and about nothing else.
Lines of JSON on standard input and output; what the code prints goes nowhere.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

from rollstream.tool_workers.sandbox.inside.own_streams import take_streams, write_all
from rollstream.tool_workers.sandbox.inside.plain_values import NotPlainError, decode, encode, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from typing import Any, BinaryIO

MAX_MESSAGE_CHARS = 500
MAX_HANDLES = 100_000
ABILITIES = ("__call__", "__getitem__", "__setitem__", "__len__", "__iter__", "__next__")
"""What a stand-in can be asked to do, if the object can."""


def run(arguments: dict[str, Any], stdin: BinaryIO) -> None:
    """Answer questions until there are no more. ``folder``: where modules are."""
    questions, answers = take_streams()
    folder: str = arguments["folder"]
    sys.path.insert(0, folder)
    os.chdir(folder)
    host = CodeHost()
    with os.fdopen(questions, "rb") as lines:
        for line in lines:
            write_all(answers, json.dumps(host.answer(json.loads(line))).encode() + b"\n")


class CodeHost:
    """Keeps what is not plain, and hands out its number."""

    def __init__(self) -> None:
        self._objects: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        """By the objects' addresses, which stay theirs: they are kept."""

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """``{"value"}``, or ``{"raised": names of the classes, "message", "arguments"}``, or ``{"failed": why}``."""
        try:
            value = self._do(question)
        except BaseException as error:  # whatever the code under test raises, SystemExit included
            return {
                "raised": _classes(type(error)),
                "message": text_of(error, MAX_MESSAGE_CHARS),
                "arguments": _arguments(error),
            }
        try:
            return {"value": self._encode(value)}
        except NotPlainError as error:
            return {"failed": str(error)}

    def _do(self, question: dict[str, Any]) -> Any:
        operation = question["do"]
        if operation == "import":
            return importlib.import_module(question["name"])
        if operation == "names":
            return _offered(importlib.import_module(question["name"]))
        target = self._objects[question["on"]]
        if operation == "get":
            return getattr(target, question["name"])
        if operation == "set":
            return setattr(target, question["name"], self._decode(question["value"]))
        if operation == "call":
            arguments = [self._decode(each) for each in question["arguments"]]
            named = {name: self._decode(each) for name, each in question["named"].items()}
            return target(*arguments, **named)
        if operation == "item":
            return target[self._decode(question["key"])]
        if operation == "put":
            target[self._decode(question["key"])] = self._decode(question["value"])
            return None
        return {"len": len, "iter": iter, "next": next, "str": str, "repr": repr}[operation](target)

    def _encode(self, value: Any) -> Any:
        return encode(value, self._keep)

    def _keep(self, value: Any) -> Any:
        number = self._numbers.get(id(value))
        if number is None:
            if len(self._objects) >= MAX_HANDLES:
                raise NotPlainError("too many objects")
            number = self._numbers[id(value)] = len(self._objects)
            self._objects[number] = value
        kind: type = type(value)  # pyright: ignore[reportUnknownVariableType] -- of anything
        return [
            "handle",
            {
                "number": number,
                "kind": kind.__name__,
                "does": [name for name in ABILITIES if any(name in vars(each) for each in kind.__mro__)],
                "exception": _classes(value) if _is_exception_class(value) else [],
            },
        ]

    def _decode(self, value: Any) -> Any:
        return decode(value, lambda number: self._objects[number])


def _is_exception_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _classes(kind: type) -> list[str]:
    return [each.__name__ for each in kind.__mro__ if each not in (object, BaseException)]


def _offered(module: Any) -> list[str]:
    """What ``import *`` takes."""
    names: Any = getattr(module, "__all__", None)
    return [name for name in module.__dict__ if not name.startswith("_")] if names is None else list(names)


def _arguments(error: BaseException) -> Any:
    """None: they are not plain."""
    try:
        return [encode(each) for each in error.args]
    except BaseException:  # of the code under test, too
        return None
