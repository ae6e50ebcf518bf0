"""Rewards that a tool worker finds out: it grades what the episode has left behind, in fresh sandboxes.

The arguments of the reward are private: they travel to the grader, and never to a sandbox of the agent's.
Infrastructure failures leave as TransientError and are never a reward of 0; what is wrong with the task is a DataError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from rollstream.rollout_workers.answer_matching import spoken_text
from rollstream.rollout_workers.episode import Episode
from rollstream.rollout_workers.rewards import RewardResult
from rollstream.schemas.errors import DataError, TransientError
from rollstream.schemas.tasks import RewardSpec
from rollstream.schemas.tools import GRADERS, OWN_GRADER, Grade

DEFAULT_TIMEOUT_S = 300.0
MAX_TIMEOUT_S = 1800.0
FENCE = "```"


def is_graded(spec: RewardSpec) -> bool:
    """Whether a tool worker has to find out."""
    return spec.name in GRADERS or spec.name.startswith(OWN_GRADER)


def grading_arguments(spec: RewardSpec, final_text: str) -> tuple[str, float, str | None]:
    """What the grader is given, how long it may take in seconds, and the toolset that grades where no session does.

    Of the reward's arguments, ``artefacts`` (patterns of files in the workspace), ``from_text`` (a file name for the
    last code block of what was said), ``grading_timeout_s`` and ``toolset`` are ours; the others are the grader's.

    Raises:
        DataError: one of ours is not what it must be, or there is nothing to be graded.
    """
    given: dict[str, Any] = dict(spec.arguments)
    artefacts = given.pop("artefacts", [])
    from_text = given.pop("from_text", None)
    timeout_s = given.pop("grading_timeout_s", DEFAULT_TIMEOUT_S)
    toolset = given.pop("toolset", None)
    if not isinstance(artefacts, list) or not all(isinstance(each, str) for each in artefacts):  # pyright: ignore[reportUnknownVariableType] -- of a task
        raise DataError(f"reward {spec.name!r}: artefacts = {artefacts!r} is not a list of patterns like 'src/**/*.py'")
    if not artefacts and not isinstance(from_text, str):
        raise DataError(f"reward {spec.name!r} grades nothing: name `artefacts` of the workspace, or `from_text`")
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise DataError(f"reward {spec.name!r}: grading_timeout_s = {timeout_s!r} is not within 0 to {MAX_TIMEOUT_S:g}")
    if toolset is not None and not isinstance(toolset, str):
        raise DataError(f"reward {spec.name!r}: toolset = {toolset!r} is not a name")
    files = {from_text: last_code_block(final_text)} if isinstance(from_text, str) else {}
    request: dict[str, Any] = {"grader": spec.name, "arguments": given, "artefacts": artefacts, "files": files}
    return msgspec.json.encode(request).decode(), float(timeout_s), toolset


def last_code_block(text: str) -> str:
    """The last fenced block of what was said; without one, all of it. Linear in its length."""
    spoken = spoken_text(text)
    block: list[str] | None = None
    last: str | None = None
    for line in spoken.splitlines(keepends=True):
        is_fence = line.strip().startswith(FENCE)
        if is_fence and block is not None and line.strip() == FENCE:
            block, last = None, "".join(block)
        elif is_fence and block is None:
            block = []
        elif block is not None:
            block.append(line)
    return spoken if last is None else last


async def grade(spec: RewardSpec, episode: Episode, final_text: str) -> RewardResult:
    """Have an episode graded.

    Raises:
        DataError: the task's grader or its arguments are wrong.
        TransientError: nobody graded it.
    """
    arguments, timeout_s, toolset = grading_arguments(spec, final_text)
    result = await episode.grade(arguments, timeout_s=timeout_s, toolset=toolset)
    if result.status == "timeout":
        raise TransientError(f"grading by {spec.name!r} took longer than {timeout_s:g} s")
    if result.status != "ok":
        raise DataError(f"reward {spec.name!r} cannot be graded: {result.content}")
    return checked(spec.name, result.content)


def checked(name: str, content: str) -> RewardResult:
    """A grade, if it is one.

    Raises:
        TransientError: it is not; a tool worker that answers so is broken.
    """
    try:
        grade = msgspec.json.decode(content, type=Grade)
    except (msgspec.MsgspecError, ValueError) as error:
        raise TransientError(f"the tool worker's grade by {name!r} is malformed: {error}") from error
    parts: Mapping[str, float] = grade.components
    if not all(math.isfinite(value) for value in (grade.reward, *parts.values())):
        raise TransientError(f"the tool worker's grade by {name!r} holds what is no finite number")
    return RewardResult(grade.reward, parts)
