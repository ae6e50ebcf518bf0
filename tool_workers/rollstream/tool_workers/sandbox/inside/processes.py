"""Turning a fork of the supervisor into a program, and ending everything that was started."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import math
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Collection, Sequence

from rollstream.tool_workers.sandbox.inside.channel import Channel
from rollstream.tool_workers.sandbox.inside.denials import Denials
from rollstream.tool_workers.sandbox.inside.limits import Limits
from rollstream.tool_workers.sandbox.inside.usage import descendants, is_stopped, is_zombie, processes_of_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
START_TIMEOUT_S = 5.0
NOBODY = 0
"""In place of the number of a program that could not be started. To a signal it means our own group."""
FAILED_TO_START = 71
KILL_WITHIN_S = 20.0
"""Many processes with large page tables take the kernel seconds to end, and that is no reason to lose a sandbox."""
KILL_PAUSE_S = 0.0005
ROUNDS_FOR_THE_KEPT = 100
"""After so many rounds a program that should be kept is not worth more tries."""
PENDING_SIGNALS = 1024
LOWEST_OWN_FD = 100
HIGHEST_FD = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """Set a property of this process; OSError if the kernel refuses."""
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


class Started:
    """A program, our ends of its standard streams, and what it said if it could not be started."""

    def __init__(self, pid: int, input_fd: int, output_fd: int, failure: bytes) -> None:
        self.pid = pid
        self.input_fd = input_fd
        self.output_fd = output_fd
        self.failure = failure


class Processes:
    """All programs of the sandbox."""

    def __init__(self, limits: Limits, channel: Channel, denials: Denials) -> None:
        self._limits = limits
        self._channel = channel
        self._denials = denials
        self.is_namespace_init = os.getpid() == 1

    def start(
        self,
        body: Callable[[], NoReturn],
        *,
        cpu_s: float,
        inherited: Sequence[tuple[int, int]] = (),
        error_fd: int | None = None,
    ) -> Started:
        """Fork, set limits, and let ``body`` take over; returns when it has, or has failed to.

        Args:
            body: replaces the process, or runs in it and never returns.
            cpu_s: processor time of each of its processes.
            inherited: further descriptors, as (ours, its number).
            error_fd: its standard error; None: the same as its output.
        """
        input_fd_of_child, input_fd = os.pipe()
        output_fd, output_fd_of_child = os.pipe()
        failure_fd, failure_fd_of_child = os.pipe()
        try:
            pid = os.fork()
        except OSError as refusal:  # the machine, its user or its container has no more processes to give
            for fd in (input_fd_of_child, output_fd_of_child, failure_fd, failure_fd_of_child):
                os.close(fd)
            return Started(NOBODY, input_fd, output_fd, f"it cannot be started: {refusal}".encode())
        if pid == 0:
            error = output_fd_of_child if error_fd is None else error_fd
            self._become(body, (input_fd_of_child, output_fd_of_child, error), failure_fd_of_child, inherited, cpu_s)
        for fd in (input_fd_of_child, output_fd_of_child, failure_fd_of_child):
            os.close(fd)
        failure = self._failure(failure_fd)
        os.set_blocking(input_fd, False)
        os.set_blocking(output_fd, False)
        return Started(pid, input_fd, output_fd, failure)

    def _failure(self, failure_fd: int) -> bytes:
        """Empty as soon as the program has taken over: that closes its end."""
        deadline = time.monotonic() + START_TIMEOUT_S
        poll = select.poll()
        poll.register(failure_fd, select.POLLIN)
        if self._denials.listener_fd is not None:
            poll.register(self._denials.listener_fd, select.POLLIN)
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                for fd, _ in poll.poll(1000 * left_s):
                    if fd == failure_fd:
                        return os.read(failure_fd, 2000)
                    self._denials.answer()
            return b"it did not start in time"
        finally:
            os.close(failure_fd)

    def kill_all(self, pid: int, *, kept: Collection[int] = ()) -> int | None:
        """Kill and reap until no process but this one is left; the exit code of ``pid``.

        ``kept`` ones are stopped instead, with all their threads: nothing of the sandbox runs between calls. If what
        they have started cannot be ended otherwise, they end too.
        """
        exit_code = None
        deadline = time.monotonic() + KILL_WITHIN_S
        for attempt in itertools.count():
            with contextlib.suppress(ChildProcessError):
                while True:
                    reaped, status = os.waitpid(-1, os.WNOHANG)
                    if reaped == 0:
                        break
                    if reaped == pid:
                        exit_code = os.waitstatus_to_exitcode(status)
            if not self._kill_once(kept if attempt < ROUNDS_FOR_THE_KEPT else ()):
                return exit_code
            if time.monotonic() > deadline:
                break
            time.sleep(KILL_PAUSE_S)
        os._exit(70)  # a sandbox that cannot be emptied is not used again

    def kill_one(self, pid: int) -> None:
        """End one that was kept."""
        if pid == NOBODY:
            return
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def all(self) -> list[int]:
        """Every process of the sandbox but this one."""
        return processes_of_namespace() if self.is_namespace_init else descendants(os.getpid())

    def _kill_once(self, kept: Collection[int]) -> bool:
        """Whether there was anything to kill; dead ones that their stopped parents have not noticed do not count."""
        if self.is_namespace_init and not kept:
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                return False
            return True
        # All at once and every time: whoever still runs may wake the others.
        for pid in (-1,) if self.is_namespace_init else kept:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        found = self._living_but(kept) or self._living_but(kept)  # one look may miss who forks meanwhile
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(found) or not all(is_stopped(pid) for pid in kept)

    def _living_but(self, kept: Collection[int]) -> list[int]:
        return [pid for pid in self.all() if pid not in kept and not is_zombie(pid)]

    def _become(
        self,
        body: Callable[[], NoReturn],
        streams: tuple[int, int, int],
        failure_fd: int,
        inherited: Sequence[tuple[int, int]],
        cpu_s: float,
    ) -> NoReturn:
        """In the child: what fails before the program starts goes to ``failure_fd``, which the program never sees."""
        report_fd = failure_fd
        try:
            os.setsid()
            prctl(PR_SET_DUMPABLE, 1)
            if not self.is_namespace_init:  # a namespace ends with its init; here a stopped program would stay for ever
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            report_fd, *moved = [_copy_above(fd) for fd in (failure_fd, *streams, *(ours for ours, _ in inherited))]
            for source, target in zip(moved, (0, 1, 2, *(to for _, to in inherited))):  # noqa: B905 -- Python 3.9
                os.dup2(source, target)
            os.closerange(3 + len(inherited), report_fd)
            os.closerange(report_fd + 1, HIGHEST_FD)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            _enter(self._limits.workspace)
            self._set_limits(cpu_s)
            _REPORT.append(report_fd)
            body()
        except BaseException as error:
            os.write(report_fd, f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace")[:1000])
            os._exit(FAILED_TO_START)

    def _set_limits(self, cpu_s: float) -> None:
        score_fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(score_fd, b"1000")
        os.close(score_fd)
        limits = self._limits
        for kind, value in (
            (resource.RLIMIT_MEMLOCK, 65536),
            (resource.RLIMIT_MSGQUEUE, 0),
            (resource.RLIMIT_SIGPENDING, PENDING_SIGNALS),
            (resource.RLIMIT_CPU, math.ceil(cpu_s) + 1),
            (resource.RLIMIT_AS, limits.address_space_bytes),
            (resource.RLIMIT_FSIZE, limits.file_bytes),
            (resource.RLIMIT_NOFILE, limits.open_files),
            (resource.RLIMIT_NPROC, limits.processes),
        ):
            _, hard = resource.getrlimit(kind)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))


_REPORT: list[int] = []
"""In a child only: where a failure to start is reported, until ``has_started``."""


def has_started() -> None:
    """In a child whose body does not replace the process: from here on it is the program."""
    os.close(_REPORT.pop())


def _enter(folder: str) -> None:
    """A workspace that the model has closed to itself is opened again: else its sandbox would look lost."""
    try:
        os.chdir(folder)
    except PermissionError:
        os.chmod(folder, 0o755)
        os.chdir(folder)


def _copy_above(fd: int) -> int:
    """A copy above all numbers that programs are given; the first one made is the lowest."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST_OWN_FD)
