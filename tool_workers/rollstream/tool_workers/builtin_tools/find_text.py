"""The tool ``find_text``: looks for a text in the files of the session. The work is done inside its sandbox."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from rollstream.tool_workers.builtin_tools.program_text import check_source, operate
from rollstream.tool_workers.functions import TimeLimit, ToolOutput, tool
from rollstream.tool_workers.sandbox.sandbox import Sandbox


@tool
async def find_text(  # noqa: D417 -- what the model reads
    sandbox: Sandbox,
    limit: TimeLimit,
    pattern: Annotated[str, Meta(min_length=1, max_length=1000)],
    path: Annotated[str, Meta(min_length=1, max_length=4096)] = ".",
    glob: Annotated[str, Meta(min_length=1, max_length=1000)] | None = None,
    regex: bool = False,
    max_results: Annotated[int, Meta(ge=1, le=200)] = 50,
) -> ToolOutput:
    """Find lines that hold a text, in a file or in all files below a folder. Shows path, line number and line.

    Args:
        pattern: The text to look for.
        path: A file or a folder; by default /workspace.
        glob: Only files whose name matches, like *.py.
        regex: Whether the pattern is a Python regular expression.
        max_results: How many lines to show.
    """
    arguments = {
        "pattern": pattern,
        "path": check_source(path),
        "glob": glob,
        "regex": regex,
        "max_results": max_results,
    }
    return await operate(sandbox, limit, "text_search", arguments)
