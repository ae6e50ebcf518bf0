"""What an episode has answered when it calls the tool ``finish``. Pure."""

from __future__ import annotations

import msgspec

from rollstream.rollout_workers.tool_calling import Observation, ToolRequest

FINISH = "finish"
"""The tool whose answer is the episode's."""


def finishes(request: ToolRequest) -> bool:
    """Whether the call, if it succeeds, ends the episode."""
    return request.name == FINISH and request.error is None


def answer_given(request: ToolRequest, observation: Observation) -> str | None:
    """The answer, if the call ends the episode and has succeeded.

    It is the argument as the model wrote it: what the model reads of it has been cleaned and may have been cut. A tool
    of one's own with this name and without such an argument answers with what it returns.
    """
    if not finishes(request) or observation.status != "ok":
        return None
    try:
        return msgspec.json.decode(request.arguments, type=_Arguments).answer
    except (msgspec.MsgspecError, UnicodeError):
        return observation.content


class _Arguments(msgspec.Struct):
    answer: str
