"""Views and edits files, inside the sandbox: paths need no guarding, because there is nothing else to reach.

Answers on standard output; what the caller did wrong begins with ``Error:`` and ends with exit code 1.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from typing import Any, BinaryIO, NoReturn

MAX_FILE_BYTES = 1024 * 1024
UNDO_DEPTH = 10
CONTEXT_LINES = 4
MAX_LISTED = 200
HISTORY = "/tmp/.editor-history"
ROOT = "/workspace"


def run(arguments: dict[str, Any], stdin: BinaryIO) -> None:
    """Do what ``arguments["command"]`` says."""
    Editor(arguments.get("root") or ROOT, arguments.get("history") or HISTORY).run(arguments)


def fail(text: str) -> NoReturn:
    """End with a text the model can act on."""
    sys.stdout.write(shown(f"Error: {text}"))
    sys.exit(1)


def shown(text: str) -> str:
    """With bytes that are no text as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Editor:
    """Args: the folder that relative paths begin in, and where the texts before edits are kept."""

    def __init__(self, root: str, history: str) -> None:
        self._root = root
        self._history = history

    def run(self, arguments: dict[str, Any]) -> None:
        """One command."""
        path = self._path(arguments["path"])
        try:
            answer = getattr(self, arguments["command"])(path, arguments)
        except OSError as error:
            fail(f"{path}: {error.strerror or error}")
        sys.stdout.write(shown(answer))

    def view(self, path: str, arguments: dict[str, Any]) -> str:
        """A file with line numbers, or the files of a folder, two levels deep."""
        if os.path.isdir(path):
            if arguments.get("view_range"):
                fail(f"view_range is for files, {path} is a folder")
            return self._listing(path)
        lines = self._read(path).split("\n")
        first, last = 1, len(lines)
        if arguments.get("view_range"):
            first, last = arguments["view_range"]
            if last == -1:
                last = len(lines)
            if not 1 <= first <= len(lines) or last < first:
                fail(f"view_range [{first}, {last}] is not within the {len(lines)} lines of {path}; -1 means the last")
        return f"{path}:\n" + numbered(lines[first - 1 : last], first)

    def create(self, path: str, arguments: dict[str, Any]) -> str:
        """Write a whole file; one that is there is replaced."""
        text = self._given(arguments, "file_text")
        is_new = not os.path.lexists(path)
        if not is_new:
            self._remember(path, self._read(path))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._write(path, text)
        return f"{path} was {'created' if is_new else 'overwritten'}, {text.count(chr(10)) + 1} lines."

    def str_replace(self, path: str, arguments: dict[str, Any]) -> str:
        """Replace the one place where a text stands."""
        old, new = self._given(arguments, "old_str"), arguments.get("new_str") or ""
        text = self._read(path)
        places = occurrences(text, old)
        if not places:
            fail(f"old_str does not appear verbatim in {path}; view the file and copy it exactly, white space included")
        if len(places) > 1:
            numbers = ", ".join(str(text.count("\n", 0, place) + 1) for place in places[:MAX_LISTED])
            fail(f"old_str appears {len(places)} times in {path}, in lines {numbers}; add lines around it")
        if old == new:
            fail("old_str and new_str are the same")
        edited = text[: places[0]] + new + text[places[0] + len(old) :]
        self._remember(path, text)
        self._write(path, edited)
        line = text.count("\n", 0, places[0])
        return f"{path} was edited:\n" + snippet(edited, line, line + new.count("\n"))

    def insert(self, path: str, arguments: dict[str, Any]) -> str:
        """Put lines behind a line; 0: at the beginning."""
        if arguments.get("insert_line") is None:
            fail("insert needs insert_line: the line after which the text goes, 0 for the beginning")
        added = arguments.get("insert_text")
        if added is None:
            added = self._given(arguments, "new_str")
        text, after = self._read(path), arguments["insert_line"]
        lines = text.split("\n")
        if after > len(lines):
            fail(f"insert_line is {after}, {path} has {len(lines)} lines")
        added_lines = added[:-1].split("\n") if added.endswith("\n") else added.split("\n")
        edited = "\n".join([*lines[:after], *added_lines, *lines[after:]])
        self._remember(path, text)
        self._write(path, edited)
        return f"{path} was edited:\n" + snippet(edited, after, after + len(added_lines) - 1)

    def undo_edit(self, path: str, arguments: dict[str, Any]) -> str:
        """Take the last edit back."""
        kept = self._kept(path)
        if not kept:
            fail(f"there is no edit of {path} to undo")
        with open(kept[-1], encoding="utf-8", errors="surrogateescape", newline="") as file:
            text = file.read()
        self._write(path, text)
        os.unlink(kept[-1])
        return f"the last edit of {path} was undone, {len(kept) - 1} more can be."

    def _path(self, given: str) -> str:
        if "\0" in given:
            fail("path holds a NUL character")
        if "://" in given or given.startswith("file:"):
            fail(f"path {given!r} is no URL: use a path like {self._root}/notes.txt")
        if given.startswith("~"):
            fail(f"path {given!r}: ~ is not expanded, use a path like {self._root}/notes.txt")
        return os.path.normpath(os.path.join(self._root, given))

    def _given(self, arguments: dict[str, Any], name: str) -> str:
        if arguments.get(name) is None:
            fail(f"{arguments['command']} needs {name}")
        return arguments[name]

    def _read(self, path: str) -> str:
        """The text of a regular file; a pipe or a device is never waited for."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            facts = os.fstat(descriptor)
            if stat.S_ISDIR(facts.st_mode):
                fail(f"{path} is a folder")
            if not stat.S_ISREG(facts.st_mode):
                fail(f"{path} is not a regular file")
            if facts.st_size > MAX_FILE_BYTES:
                fail(f"{path} has {facts.st_size} bytes, at most {MAX_FILE_BYTES} can be viewed or edited; use bash")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(MAX_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
        if b"\0" in content:
            fail(f"{path} is a binary file; use bash")
        return content.decode("utf-8", "surrogateescape")

    def _write(self, path: str, text: str) -> None:
        """All or nothing: readers see the old text or the new one."""
        mode = stat.S_IMODE(os.stat(path).st_mode) if os.path.exists(path) else 0o644
        target = os.path.realpath(path)
        temporary = f"{target}.{os.getpid()}.tmp"[-250:] if len(os.path.basename(target)) < 200 else target + "~"
        try:
            with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                file.write(text)
            os.chmod(temporary, mode)
            os.replace(temporary, target)
        except BaseException:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise

    def _kept(self, path: str) -> list[str]:
        place = self._place(path)
        return [os.path.join(place, name) for name in sorted(os.listdir(place))] if os.path.isdir(place) else []

    def _place(self, path: str) -> str:
        return os.path.join(self._history, hashlib.sha256(os.fsencode(path)).hexdigest()[:32])

    def _remember(self, path: str, text: str) -> None:
        """The edit is made even if there is no room to remember what was before."""
        kept = self._kept(path)
        number = int(os.path.basename(kept[-1])) + 1 if kept else 0
        try:
            os.makedirs(self._place(path), exist_ok=True)
            name = os.path.join(self._place(path), f"{number:08d}")
            with open(name, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                file.write(text)
        except OSError:
            return
        for old in kept[: max(0, len(kept) + 1 - UNDO_DEPTH)]:
            os.unlink(old)

    def _listing(self, path: str) -> str:
        found: list[str] = []
        for place, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            depth = 0 if place == path else os.path.relpath(place, path).count(os.sep) + 1
            found += [os.path.join(place, name) for name in sorted(names) if not name.startswith(".")]
            if depth >= 1:
                found += [os.path.join(place, name) + "/" for name in folders]
                folders.clear()
            if depth:
                found.append(place + "/")
        shown = sorted(found)[:MAX_LISTED]
        rest = f"\n... and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
        return f"{path}, two levels deep, without hidden files:\n" + "\n".join(shown) + rest


def numbered(lines: list[str], first: int) -> str:
    """Lines with their numbers."""
    return "\n".join(f"{number:6}\t{line}" for number, line in enumerate(lines, first))


def snippet(text: str, first: int, last: int) -> str:
    """The lines around an edit, counted from 0."""
    lines = text.split("\n")
    start = max(0, first - CONTEXT_LINES)
    return numbered(lines[start : last + CONTEXT_LINES + 1], start + 1)


def occurrences(text: str, part: str) -> list[int]:
    """Where a text stands, overlapping places included."""
    found: list[int] = []
    place = text.find(part)
    while place >= 0:
        found.append(place)
        place = text.find(part, place + 1)
    return found
