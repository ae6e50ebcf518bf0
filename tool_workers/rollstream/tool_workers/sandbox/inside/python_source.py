"""Runs source text in a fork of the supervisor, whose interpreter is warm."""

from __future__ import annotations

import contextlib
import linecache
import os
import signal
import sys
import threading
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from typing import Any, NoReturn, TextIO

SOURCE_NAME = "<python>"


def run_python(source: str, workspace: str) -> NoReturn:
    """Run source text as ``__main__`` in this process and end it."""
    names = prepare(workspace)
    exit_code = execute(source, SOURCE_NAME, names)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    flush()
    os._exit(exit_code)


def prepare(workspace: str) -> dict[str, Any]:
    """Make this process look like a Python that was just started; the names of its ``__main__``."""
    sys.stdout, sys.stderr = text_stream(1), text_stream(2)
    sys.stdin = open(0, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 -- lives on
    sys.argv = [SOURCE_NAME]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[:] = [workspace, *(path for path in sys.path if not path.endswith(".pyz"))]
    main = type(sys)("__main__")
    sys.modules["__main__"] = main
    for name in [name for name in sys.modules if name == "rollstream" or name.startswith("rollstream.")]:
        del sys.modules[name]
    return main.__dict__


def execute(source: str, name: str, names: dict[str, Any]) -> int:
    """Run source text among these names; the exit code it asks for, 1 if it raised, else 0."""
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    try:
        exec(compile(source, name, "exec"), names)
    except SystemExit as stop:
        return exit_code_of(stop)
    except BaseException as error:
        show(error)
        return 1
    return 0


def exit_code_of(stop: SystemExit) -> int:
    """As Python itself takes it; a text is shown."""
    if isinstance(stop.code, str):
        sys.stderr.write(stop.code + "\n")
    return stop.code & 0xFF if isinstance(stop.code, int) else int(stop.code is not None)


def show(error: BaseException) -> None:
    """The traceback, without our own part of it."""
    shown = error.__traceback__.tb_next if error.__traceback__ else None
    traceback.print_exception(type(error), error, shown)


def flush() -> None:
    """What was printed is out."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()


def text_stream(fd: int) -> TextIO:
    """A stream that loses no line when the process is killed, and takes any text."""
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
