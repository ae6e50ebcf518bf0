"""A tool that does nothing: what is left is the way there and back."""

from __future__ import annotations

from rollstream.tool_workers.functions import tool


@tool()
async def no_op() -> str:
    """Do nothing."""
    return "done"
