"""The session's long-lived shell and interpreter.

Each runs one call after another. That a call has finished is said on a descriptor of its own, with a word that is new
for each call: nothing a program prints can be taken for it. Whoever forges it from within the shell itself ends its
own call early, and no more. Between calls it is stopped, and everything it has started is dead.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import signal
import sys
from collections.abc import Callable

from rollstream.tool_workers.sandbox.inside.processes import Processes, Started, has_started
from rollstream.tool_workers.sandbox.inside.python_source import exit_code_of, flush, prepare, show
from rollstream.tool_workers.sandbox.inside.usage import is_zombie

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from typing import Any, NoReturn

SHELL_LOOP = r"""
while IFS= builtin read -r -d '' -u 3 __rollstream_word && IFS= builtin read -r -d '' -u 3 __rollstream_command; do
builtin eval "$__rollstream_command" 3<&- 4>&-
__rollstream_code=$?
builtin disown -a 2>/dev/null
builtin printf '%s %d\0' "$__rollstream_word" "$__rollstream_code" >&4
done
"""
"""Jobs are disowned: they are killed when the call ends, and the next call is not to hear of it."""
COMMANDS_FD, DONE_FD = 3, 4
MAX_DONE_BYTES = 200


class LongLived:
    """One of them, running.

    Attributes:
        commands_fd: where it reads what to run.
        done_fd: where it says that it has.
        failure: what it said if it could not be started.
    """

    def __init__(self, started: Started, commands_fd: int, done_fd: int) -> None:
        self.pid = started.pid
        self.output_fd = started.output_fd
        self.failure = started.failure
        self.commands_fd = commands_fd
        self.done_fd = done_fd

    def close(self) -> None:
        """Of our ends; it has ended."""
        for fd in (self.output_fd, self.commands_fd, self.done_fd):
            os.close(fd)

    def exists(self) -> bool:
        """It may have been killed by what another call ran."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return not is_zombie(self.pid)

    def has_stirred(self) -> bool:
        """Whether it has ended, gone on, or gone on and been stopped again since it was last stopped by us."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG) is not None
        except ChildProcessError:
            return True

    def settle(self) -> None:
        """Take notice that it has been stopped, so that this is no news any more."""
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG)

    def resume(self) -> None:
        """Let it run."""
        os.kill(self.pid, signal.SIGCONT)

    def exit_code(self, word: str) -> int | None:
        """Of the call that has just finished; None: it has not said so, or said something else."""
        try:
            said = os.read(self.done_fd, MAX_DONE_BYTES)
        except BlockingIOError:
            return None
        text, _, rest = said.partition(b"\0")
        name, _, code = text.decode("ascii", "replace").partition(" ")
        return int(code) if name == word and not rest and code.isdecimal() and len(code) <= 3 else None


def new_word() -> str:
    """Nobody can know it before the call runs."""
    return os.urandom(16).hex()


def start_long_lived(processes: Processes, kind: str, workspace: str, cpu_s: float) -> LongLived:
    """Start a shell (``"shell"``) or an interpreter (``"interpreter"``)."""
    commands_fd_of_child, commands_fd = os.pipe()
    done_fd, done_fd_of_child = os.pipe()
    body = _shell if kind == "shell" else _interpreter(workspace)
    started: Started = processes.start(
        body, cpu_s=cpu_s, inherited=((commands_fd_of_child, COMMANDS_FD), (done_fd_of_child, DONE_FD))
    )
    for fd in (commands_fd_of_child, done_fd_of_child, started.input_fd):
        os.close(fd)
    os.set_blocking(done_fd, False)
    return LongLived(started, commands_fd, done_fd)


def _shell() -> NoReturn:
    os.execv("/bin/bash", ["bash", "--noprofile", "--norc", "-c", SHELL_LOOP, "bash"])


def _interpreter(workspace: str) -> Callable[[], NoReturn]:
    def body() -> NoReturn:
        for fd in (COMMANDS_FD, DONE_FD):
            os.set_inheritable(fd, False)
        own_pid = os.getpid()
        names = prepare(workspace)
        has_started()
        commands = open(COMMANDS_FD, "rb", closefd=False)  # noqa: SIM115 -- as long as the process lives
        number = 0
        while True:
            word = _until_nul(commands.read)
            source = _until_nul(commands.read)
            number += 1
            exit_code = _execute(source, f"<python call {number}>", names)
            flush()
            if os.getpid() != own_pid:
                os._exit(exit_code)  # a fork that came back here
            os.write(DONE_FD, f"{word} {exit_code}\0".encode())

    return body


def _execute(source: str, name: str, names: dict[str, Any]) -> int:
    """Run one call's source text; the value of a last expression is shown. Whoever exits, ends the interpreter."""
    import ast  # a megabyte, only where it is used

    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    try:
        tree = ast.parse(source, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), names)
            if value is not None:
                sys.stdout.write(f"{value!r}\n")
    except SystemExit as stop:
        exit_code = exit_code_of(stop)
        flush()
        os._exit(exit_code)
    except BaseException as error:
        show(error)
        return 1
    return 0


def _until_nul(read: Callable[[int], bytes]) -> str:
    text = bytearray()
    while (byte := read(1)) != b"\0":
        if not byte:
            os._exit(0)
        text += byte
    return text.decode("utf-8", "surrogateescape")
