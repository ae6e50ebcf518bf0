"""Calls one function of the agent's and says what it returned; what it prints goes nowhere."""

from __future__ import annotations

import importlib
import json
import os
import sys

from rollstream.tool_workers.sandbox.inside.own_streams import take_streams, write_all
from rollstream.tool_workers.sandbox.inside.plain_values import NotPlainError, encode, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from typing import Any, BinaryIO


MAX_MESSAGE_CHARS = 200


def run(arguments: dict[str, Any], stdin: BinaryIO) -> None:
    """``{"value": ...}``, ``{"raised": [names of the classes]}`` by the function itself, or ``{"failed": why}``."""
    questions, answers = take_streams()
    os.close(questions)
    sys.path.insert(0, os.getcwd())
    write_all(answers, json.dumps(_answer(arguments)).encode())
    os._exit(0)


def _answer(arguments: dict[str, Any]) -> dict[str, Any]:
    """No case expects code that is missing or broken, so what happens before the call is no exception of it."""
    module, _, name = arguments["call"].partition(":")
    try:
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except BaseException as error:  # whatever the agent's code raises
        return {"failed": f"it cannot be called: {type(error).__name__}: {text_of(error, MAX_MESSAGE_CHARS)}"}
    try:
        value = function(*arguments["args"], **arguments["kwargs"])
    except BaseException as error:  # whatever the agent's code raises
        return {"raised": [each.__name__ for each in type(error).__mro__ if each is not object]}
    try:
        return {"value": encode(value)}
    except NotPlainError as error:
        return {"failed": f"it returned no plain value: {text_of(error, MAX_MESSAGE_CHARS)}"}
