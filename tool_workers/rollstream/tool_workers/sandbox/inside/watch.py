"""Stands by a running program: gathers its output, feeds it, keeps its limits, answers for the filter."""

from __future__ import annotations

import math
import os
import resource
import select
import time
from collections.abc import Collection

from rollstream.tool_workers.sandbox.inside.denials import Denials
from rollstream.tool_workers.sandbox.inside.limits import Limits
from rollstream.tool_workers.sandbox.inside.output import Output
from rollstream.tool_workers.sandbox.inside.processes import Processes
from rollstream.tool_workers.sandbox.inside.usage import (
    cpu_s,
    has_many_locks,
    has_many_mappings,
    oom_kills,
    open_sockets,
    open_terminals,
    proportional_bytes,
    queued_bytes,
    resident_bytes,
    used_bytes,
    used_files,
)

INTERVAL_S = 0.1
INPUT_CHUNK_BYTES = 65536
MAX_TERMINALS = 64
LOOK_WITHIN_S = 0.5
FEW_PROCESSES = 8
"""The kernel's memory for what so few can map is not worth a look."""
MAPPINGS_BYTES = 16 * 1024 * 1024
"""Of 65,530 mappings, as many as a process can have, at 200 to 250 bytes each."""


class ResourceWatch:
    """Tells which limit the programs of one call have passed, if any."""

    def __init__(self, limits: Limits, processes: Processes) -> None:
        self._limits = limits
        self._processes = processes
        self._cpu_s_before = self.cpu_s()
        self._files_before = self._files()
        self._oom_kills_before = oom_kills()
        self.next_look = time.monotonic() + INTERVAL_S

    @property
    def has_run_out_of_memory(self) -> bool:
        """Whether the kernel has killed a process of this call for it, as far as that is shown here."""
        return oom_kills() > self._oom_kills_before

    def exceeded(self) -> str | None:
        """Looks once per interval; None: nothing, or it is too early."""
        now = time.monotonic()
        if now < self.next_look:
            return None
        self.next_look = now + INTERVAL_S
        sockets = open_sockets() if self._processes.is_namespace_init else 0
        if self._memory_bytes(sockets) > self._limits.memory_bytes:
            return "memory"
        used_cpu_s = self.cpu_s()
        if used_cpu_s - self._cpu_s_before > self._limits.call_cpu_s or used_cpu_s > self._limits.session_cpu_s:
            return "cpu"
        # Only a call that adds files is stopped: the next one must be able to remove them.
        if (files := self._files()) > self._limits.files and files > self._files_before:
            return "files"
        if self._processes.is_namespace_init and (
            sockets > self._limits.sockets or open_terminals() > MAX_TERMINALS or has_many_locks()
        ):
            return "files"
        return None

    def cpu_s(self) -> float:
        """Of all programs of the sandbox, now and before."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ended.ru_utime + ended.ru_stime + sum(cpu_s(pid) for pid in self._processes.all())

    def call_cpu_s(self) -> float:
        """Of this call."""
        return max(0.0, self.cpu_s() - self._cpu_s_before)

    def _files(self) -> int:
        return used_files(self._limits.memory_folders)

    def _memory_bytes(self, sockets: int) -> float:
        """Memory of all programs, and what is in none; exact only if the cheap upper bound is over the limit."""
        if not self._processes.is_namespace_init:
            return sum(resident_bytes(pid) for pid in self._processes.all())
        pids = self._processes.all()
        in_none = sum(used_bytes(path) for path in self._limits.memory_folders)
        if sockets > 0:
            in_none += queued_bytes()
        if len(pids) > FEW_PROCESSES:
            in_none += MAPPINGS_BYTES * sum(has_many_mappings(pid) for pid in pids)
        total = in_none + sum(resident_bytes(pid) for pid in pids)
        return total if total <= self._limits.memory_bytes else self._exact_memory_bytes(in_none, pids)

    def _exact_memory_bytes(self, in_none: int, pids: Collection[int]) -> float:
        """Shared pages counted once. What cannot be looked at in time cannot be allowed: it grows meanwhile."""
        deadline = time.monotonic() + LOOK_WITHIN_S
        total = in_none
        for pid in pids:
            total += proportional_bytes(pid)
            if time.monotonic() > deadline:
                return math.inf
        return total


class Program:
    """What is watched.

    Attributes:
        done_fd: readable when a long-lived program has finished a call; None: it finishes by ending.
        stdin: still to be fed to it.
    """

    def __init__(
        self,
        pid: int,
        input_fd: int | None,
        output_fd: int,
        *,
        deadline: float,
        stdin: bytes,
        done_fd: int | None = None,
    ) -> None:
        self.pid = pid
        self.input_fd = input_fd
        self.output_fd = output_fd
        self.deadline = deadline
        self.stdin = memoryview(stdin)
        self.done_fd = done_fd


def watch(
    program: Program, output: Output, resources: ResourceWatch, flood_bytes: int, denials: Denials, worker_fd: int
) -> str | None:
    """Return when the program has ended or finished its call; the reason if it has to be killed.

    ``flood_bytes``: output after which it is.
    """
    pidfd = os.pidfd_open(program.pid)
    poll = select.poll()
    for fd in (program.output_fd, pidfd, program.done_fd, denials.listener_fd):
        if fd is not None:
            poll.register(fd, select.POLLIN)
    poll.register(worker_fd, select.POLLRDHUP)
    _register_input(program, poll)
    try:
        while True:
            now = time.monotonic()
            if now >= program.deadline:
                return "timeout"
            if (cause := resources.exceeded()) is not None:
                return cause
            is_over = False
            for fd, events in poll.poll(1000 * max(0.0, min(program.deadline, resources.next_look) - now) + 1):
                if fd == worker_fd:
                    return "timeout"  # nobody is there to tell; the supervisor finds out when it tries
                elif fd == program.done_fd and not events & select.POLLIN:
                    poll.unregister(fd)  # it can say nothing more; it may be about to end
                elif fd in (pidfd, program.done_fd):
                    is_over = True
                elif fd == denials.listener_fd:
                    denials.answer()
                elif fd == program.output_fd:
                    if not output.read(program.output_fd):
                        poll.unregister(program.output_fd)
                else:
                    _feed(program, poll, events)
            if is_over:
                output.drain(program.output_fd, flood_bytes)
            if output.total_bytes > flood_bytes:
                return "output"
            if is_over:
                return None
    finally:
        os.close(pidfd)


def _register_input(program: Program, poll: select.poll) -> None:
    if program.input_fd is None:
        return
    if program.stdin:
        poll.register(program.input_fd, select.POLLOUT)
    else:
        os.close(program.input_fd)
        program.input_fd = None


def _feed(program: Program, poll: select.poll, events: int) -> None:
    """A program that does not read all it is given is no failure."""
    if program.input_fd is None:
        return
    written = 0
    if events & select.POLLOUT:
        try:
            written = os.write(program.input_fd, program.stdin[:INPUT_CHUNK_BYTES])
        except BlockingIOError:
            return
        except BrokenPipeError:
            program.stdin = program.stdin[:0]
    else:
        program.stdin = program.stdin[:0]
    program.stdin = program.stdin[written:]
    if not program.stdin:
        poll.unregister(program.input_fd)
        os.close(program.input_fd)
        program.input_fd = None
