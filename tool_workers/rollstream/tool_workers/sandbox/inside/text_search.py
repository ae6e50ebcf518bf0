"""Looks for a text in files, inside the sandbox. Patterns and paths are data: no program takes them for options.

A regular expression that takes for ever is ended by the time limit of the call.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from collections.abc import Iterator
    from typing import Any, BinaryIO

MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_LINE_CHARS = 500
ROOT = "/workspace"


def run(arguments: dict[str, Any], stdin: BinaryIO) -> None:
    """Print ``path:line: text`` for every line that matches."""
    root = arguments.get("root") or ROOT
    pattern = arguments["pattern"]
    try:
        compiled = re.compile(pattern if arguments["regex"] else re.escape(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        sys.stdout.write(f"Error: pattern {pattern[:100]!r} is no regular expression: {error}")
        sys.exit(1)
    place = os.path.normpath(os.path.join(root, arguments["path"]))
    if not os.path.lexists(place):
        sys.stdout.write(f"Error: {place} does not exist")
        sys.exit(1)
    shown = total = 0
    for path in files(place, arguments.get("glob")):
        for number, line in enumerate(text_lines(path), 1):
            if compiled.search(line):
                total += 1
                if shown < arguments["max_results"]:
                    shown += 1
                    cut = line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS] + " ..."
                    sys.stdout.write(f"{os.path.relpath(path, root)}:{number}: {cut}\n")
    if total > shown:
        sys.stdout.write(f"[{total - shown} more matches; narrow the pattern, the path or the glob]\n")
    elif not total:
        sys.stdout.write("no matches\n")


def files(place: str, glob: str | None) -> Iterator[str]:
    """Files below a folder, or the file itself; hidden folders are left out, links are not followed."""
    if not os.path.isdir(place):
        yield place
        return
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if glob is None or fnmatch.fnmatch(name, glob) or fnmatch.fnmatch(os.path.relpath(path, place), glob):
                yield path


def text_lines(path: str) -> list[str]:
    """The lines of a regular text file; none of anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return []
    with open(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_FILE_BYTES:
            return []
        try:
            content = file.read(MAX_FILE_BYTES)
        except OSError:
            return []
    return [] if b"\0" in content[:8192] else content.decode("utf-8", "backslashreplace").splitlines()
