"""The tool ``finish``: the model says that it is done, and what its answer is."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from rollstream.tool_workers.functions import tool


@tool(timeout_s=5.0)
async def finish(answer: Annotated[str, Meta(max_length=16_000)]) -> str:
    """Give the final answer. Nothing more is asked of you after that.

    Args:
        answer: The answer, as it is to be judged.
    """
    return answer
