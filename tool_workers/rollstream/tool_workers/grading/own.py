"""Graders of one's own: an async function under ``@grader``, named ``grader:<name>`` by tasks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

from rollstream.schemas.errors import SettingsError
from rollstream.tool_workers.functions import ToolError
from rollstream.tool_workers.grading.artefacts import Artefacts
from rollstream.tool_workers.grading.rooms import Room
from rollstream.tool_workers.grading.verdict import Verdict

_GRADER_ATTRIBUTE = "__rollstream_grader__"


@dataclass(frozen=True)
class Grading:
    """What a grader is given.

    Attributes:
        artefacts: what the agent has left.
        arguments: of the task's reward; private: no sandbox of the agent has ever held them.
        room: opens fresh sandboxes.
        timeout_s: how long it may take.
    """

    artefacts: Artefacts
    arguments: Mapping[str, Any]
    room: Room
    timeout_s: float


OwnGrader = Callable[[Grading], Awaitable[float | Mapping[str, float] | Verdict]]


def grader(function: OwnGrader) -> OwnGrader:
    """Declare an async function of one ``Grading`` as a grader, under its own name.

    Raises:
        SettingsError: it is not async.
    """
    if not inspect.iscoroutinefunction(function):
        raise SettingsError(f"grader {function.__name__!r} is not an async function")
    setattr(function, _GRADER_ATTRIBUTE, True)
    return function


def declared_graders(module: ModuleType) -> dict[str, OwnGrader]:
    """The graders of a module, by name."""
    return {
        value.__name__: cast("OwnGrader", value) for value in vars(module).values() if hasattr(value, _GRADER_ATTRIBUTE)
    }


def verdict_from(name: str, outcome: float | Mapping[str, float] | Verdict) -> Verdict:
    """What a grader returned, as a verdict.

    Raises:
        ToolError: it is no finite number.
    """
    if isinstance(outcome, Verdict):
        found = outcome
    elif isinstance(outcome, Mapping):
        found = Verdict(outcome.get("reward", math.nan), {key: outcome[key] for key in outcome if key != "reward"})
    else:
        found = Verdict(float(outcome))
    for part, value in {"reward": found.reward, **found.components}.items():
        if not math.isfinite(value):
            raise ToolError(f"grader {name!r} returned {part} = {value!r}: it must be a finite number")
    return found
