"""The tool ``str_replace_editor``: views and edits files of the session. The work is done inside its sandbox."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from rollstream.tool_workers.builtin_tools.program_text import operate
from rollstream.tool_workers.functions import TimeLimit, ToolOutput, tool
from rollstream.tool_workers.sandbox.sandbox import Sandbox


@tool
async def str_replace_editor(  # noqa: D417 -- what the model reads
    sandbox: Sandbox,
    limit: TimeLimit,
    command: Literal["view", "create", "str_replace", "insert", "undo_edit"],
    path: Annotated[str, Meta(min_length=1, max_length=4096)],
    file_text: str | None = None,
    view_range: Annotated[list[int], Meta(min_length=2, max_length=2)] | None = None,
    old_str: Annotated[str, Meta(min_length=1)] | None = None,
    new_str: str | None = None,
    insert_line: Annotated[int, Meta(ge=0)] | None = None,
    insert_text: str | None = None,
) -> ToolOutput:
    """View, create and edit text files. Paths are absolute, or relative to /workspace.

    Args:
        command: What to do.
        path: The file, or for view also a folder.
        file_text: For create, the whole text; a file that is there is overwritten.
        view_range: For view, the first and the last line; -1 as the last means the end.
        old_str: For str_replace, the text to be replaced; it must stand in the file exactly once.
        new_str: For str_replace, what replaces it; nothing by default.
        insert_line: For insert, the line after which the text goes; 0 for the beginning.
        insert_text: For insert, the text.
    """
    arguments = {
        "command": command,
        "path": path,
        "file_text": file_text,
        "view_range": view_range,
        "old_str": old_str,
        "new_str": new_str,
        "insert_line": insert_line,
        "insert_text": insert_text,
    }
    return await operate(sandbox, limit, "editor", arguments)
