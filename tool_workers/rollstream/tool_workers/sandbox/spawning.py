"""Starts supervisors, in a sandbox or (by name only) as plain children.

All are started by one long-lived thread: ``--die-with-parent`` follows the thread that started the process, so a pool's
short-lived thread would take its sandboxes with it. The environment handed to bwrap is empty, because bwrap's own
environment is readable inside.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.bubblewrap import (
    ENVIRONMENT,
    SUPERVISOR_SOURCE,
    Interpreter,
    explain_failure,
    find_bubblewrap,
    find_interpreter,
    sandbox_command,
    supervisor_command,
    supervisor_limits,
)
from rollstream.tool_workers.sandbox.seccomp_filter import seccomp_program
from rollstream.tool_workers.settings import SandboxSettings

MAX_COMPLAINT_BYTES = 4000
UNLIMITED_PROCESSES = 1_000_000
"""Outside a user namespace the limit would count every process of the user."""


class SupervisorProcess:
    """A running supervisor (or the bwrap around it) and our end of its socket. Blocking methods."""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: socket.socket, complaints_fd: int, folder: Path | None = None
    ) -> None:
        self.channel = channel
        self._process = process
        self._complaints_fd = complaints_fd
        self._folder = folder

    def kill(self) -> None:
        """Kill it and with it everything inside. Returns at once."""
        if self._process.poll() is None:
            self._process.kill()

    def dispose(self) -> None:
        """Kill, reap and free what it held."""
        self.kill()
        self._process.wait()
        os.close(self._complaints_fd)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def complaint(self) -> str:
        """What it wrote to its standard error."""
        return os.pread(self._complaints_fd, MAX_COMPLAINT_BYTES, 0).decode(errors="backslashreplace").strip()


class Spawner(Protocol):
    """Starts supervisors."""

    is_isolated: bool

    def spawn(self) -> SupervisorProcess:
        """Start one. Call it only on the one thread that starts them all."""
        ...

    def explain(self, complaint: str) -> str:
        """What to do about a supervisor that did not start."""
        ...


class BubblewrapSpawner:
    """Starts supervisors as PID 1 of a bubblewrap sandbox.

    Raises:
        IsolationError: bubblewrap or libseccomp is missing.
    """

    is_isolated = True

    def __init__(self, limits: SandboxSettings) -> None:
        self._limits = limits
        self._bubblewrap = find_bubblewrap()
        self.interpreter: Interpreter = find_interpreter()
        self._seccomp = seccomp_program()
        self._supervisor = SUPERVISOR_SOURCE.read_bytes()
        self._uids = itertools.cycle(range(limits.first_uid, limits.first_uid + limits.uids))

    def spawn(self) -> SupervisorProcess:
        """Start one; as root under an unprivileged user id of its own."""
        ours, theirs = socket.socketpair()
        complaints_fd = os.memfd_create("complaints")
        channel_fd = theirs.fileno()
        opened: list[int] = []

        def descriptor(content: bytes) -> int:
            opened.append(_readable(content))
            return opened[-1]

        try:
            command = sandbox_command(
                self._bubblewrap,
                self.interpreter,
                self._limits,
                seccomp=self._seccomp,
                supervisor=self._supervisor,
                channel_fd=channel_fd,
                descriptor=descriptor,
            )
            uid = next(self._uids) if os.geteuid() == 0 else None
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints_fd,
                env={},
                cwd="/",
                pass_fds=(channel_fd, *opened),
                user=uid,
                group=uid,
                extra_groups=None if uid is None else [],
            )
        except BaseException:
            ours.close()
            os.close(complaints_fd)
            raise
        finally:
            theirs.close()
            for number in opened:
                os.close(number)
        return SupervisorProcess(process, ours, complaints_fd)

    def explain(self, complaint: str) -> str:
        """Translate bwrap's message."""
        return explain_failure(complaint)


class UnsafeLocalSpawner:
    """Starts supervisors as plain children in a temporary folder: limits, but no isolation at all."""

    is_isolated = False

    def __init__(self, limits: SandboxSettings) -> None:
        self._limits = limits.model_copy(update={"processes": UNLIMITED_PROCESSES})

    def spawn(self) -> SupervisorProcess:
        """Start one in a group of its own."""
        folder = Path(tempfile.mkdtemp(prefix="rollstream-session-"))
        ours, theirs = socket.socketpair()
        complaints_fd = os.memfd_create("complaints")
        limits = supervisor_limits(self._limits, workspace=str(folder), memory_folders=())
        command = supervisor_command(Interpreter(sys.executable), str(SUPERVISOR_SOURCE), theirs.fileno(), limits)
        with theirs:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints_fd,
                env=ENVIRONMENT | {"HOME": str(folder)},
                cwd=folder,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        return SupervisorProcess(process, ours, complaints_fd, folder)

    def explain(self, complaint: str) -> str:
        """Nothing is known about it."""
        return "see the message above"


def spawning_thread() -> ThreadPoolExecutor:
    """The one thread; keep it as long as the sandboxes live."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-spawner")


def build_spawner(isolation: str, limits: SandboxSettings) -> Spawner:
    """The spawner that the setting ``isolation`` names.

    Raises:
        IsolationError: it is not possible here.
    """
    if not sys.platform.startswith("linux"):
        raise IsolationError(f"sandboxes need Linux, this is {sys.platform!r}: run the tool worker in a Linux machine")
    return UnsafeLocalSpawner(limits) if isolation == "unsafe-local" else BubblewrapSpawner(limits)


def _readable(content: bytes) -> int:
    descriptor = os.memfd_create("content")
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
