"""Calls one function of the agent's and says what it returned; what it prints goes nowhere."""

from __future__ import annotations

import importlib
import json
import os
import sys

from rollstream.tool_workers.sandbox.inside.own_streams import take_streams
from rollstream.tool_workers.sandbox.inside.plain_values import NotPlainError, encode

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from typing import Any, BinaryIO


def run(arguments: dict[str, Any], stdin: BinaryIO) -> None:
    """``{"value": ...}``, or ``{"raised": [names of the classes]}``."""
    questions, answers = take_streams()
    os.close(questions)
    sys.path.insert(0, os.getcwd())
    module, _, name = arguments["call"].partition(":")
    try:
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        value = function(*arguments["args"], **arguments["kwargs"])
        answer = {"value": encode(value)}
    except NotPlainError as error:
        answer = {"raised": ["NotPlainError"], "message": str(error)}
    except BaseException as error:  # whatever the agent's code raises
        answer = {"raised": [each.__name__ for each in type(error).__mro__]}
    left = memoryview(json.dumps(answer).encode())
    while left:
        left = left[os.write(answers, left) :]
    os._exit(0)
