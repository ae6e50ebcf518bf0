"""Starts supervisors: in a sandbox, or (by name only) as plain children."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.archives import compiled_archive, inside_archive
from rollstream.tool_workers.sandbox.bubblewrap import (
    ENVIRONMENT,
    Interpreter,
    explain_failure,
    find_bubblewrap,
    find_interpreter,
    sandbox_command,
    supervisor_command,
    supervisor_limits,
)
from rollstream.tool_workers.sandbox.descriptors import KeptFile
from rollstream.tool_workers.sandbox.launching import GroupFacts, LaunchedSandbox, LauncherProcess
from rollstream.tool_workers.sandbox.outside.launcher import CHANNEL_FD, FIRST_CONTENT_FD
from rollstream.tool_workers.sandbox.outside.scarcity import explain_scarcity
from rollstream.tool_workers.sandbox.seccomp_filter import seccomp_programs
from rollstream.tool_workers.settings import SandboxSettings

MAX_COMPLAINT_BYTES = 4000
UNLIMITED_PROCESSES = 1_000_000
"""Outside a user namespace the limit would count every process of the user."""


@dataclass(frozen=True)
class Enforcement:
    """Where limits of memory and processes are enforced: ``v1`` or ``v2`` control groups, an engine, or ``none``.

    Attributes:
        reason: why it is nowhere.
    """

    kind: str
    reason: str = ""


class SupervisorProcess(Protocol):
    """A running supervisor (or what is around it) and our end of its channel. Blocking methods.

    One thread may dispose of it while another kills it or asks about it.
    """

    channel: socket.socket
    facts: GroupFacts

    def kill(self) -> None:
        """Kill it and with it everything inside. Returns at once."""
        ...

    def dispose(self) -> None:
        """Kill, reap and free what it held. To be called once."""
        ...

    def complaint(self) -> str:
        """What it wrote to its standard error, also once it is disposed of."""
        ...


class Spawner(Protocol):
    """Starts supervisors."""

    is_isolated: bool

    def spawn(self) -> SupervisorProcess:
        """Start one. Call it only on the one thread that starts them all. Raises IsolationError."""
        ...

    def explain(self, complaint: str) -> str:
        """What to do about a supervisor that did not start."""
        ...

    @property
    def enforcement(self) -> Enforcement:
        """What holds memory and processes; known once a supervisor was started."""
        ...

    def close(self) -> None:
        """End what is left, and what serves them all."""
        ...


class BubblewrapSpawner:
    """Starts supervisors as PID 1 of a bubblewrap sandbox, through a launcher; as root under user ids of their own.

    Raises:
        IsolationError: bubblewrap or libseccomp is missing.
    """

    is_isolated = True

    def __init__(self, limits: SandboxSettings) -> None:
        self._limits = limits
        self._bubblewrap = find_bubblewrap()
        self.interpreter: Interpreter = find_interpreter()
        self._seccomp = seccomp_programs()
        self._launcher: LauncherProcess | None = None

    @property
    def launcher(self) -> LauncherProcess:
        """Started when it is first asked for."""
        if self._launcher is None:
            command, contents = self.command()
            limits = self._limits
            uids = list(range(limits.first_uid, limits.first_uid + limits.uids)) if os.geteuid() == 0 else []
            self._launcher = LauncherProcess(
                command, contents, limits, uids, uses_cgroups=limits.memory_enforcement != "watch"
            )
        return self._launcher

    def command(self) -> tuple[list[str], list[bytes]]:
        """Bubblewrap's command line, and what its descriptors from 11 on hold."""
        contents: list[bytes] = []

        def descriptor(content: bytes) -> int:
            contents.append(content)
            return FIRST_CONTENT_FD + len(contents) - 1

        command = sandbox_command(
            self._bubblewrap,
            self.interpreter,
            self._limits,
            seccomp=self._seccomp,
            supervisor=compiled_archive(self.interpreter.path),
            channel_fd=CHANNEL_FD,
            descriptor=descriptor,
        )
        return command, contents

    def spawn(self) -> SupervisorProcess:
        """Start one."""
        return LaunchedSupervisor(self.launcher, self.launcher.spawn())

    def explain(self, complaint: str) -> str:
        """What bwrap's complaint means."""
        return explain_failure(complaint)

    @property
    def enforcement(self) -> Enforcement:
        """As the launcher found it."""
        return Enforcement(self.launcher.cgroups, self.launcher.cgroups_reason)

    def close(self) -> None:
        """End the launcher and every sandbox."""
        if self._launcher is not None:
            self._launcher.close()


class LaunchedSupervisor:
    """A supervisor that the launcher has started."""

    def __init__(self, launcher: LauncherProcess, sandbox: LaunchedSandbox) -> None:
        self.channel = sandbox.channel
        self.facts = sandbox.facts
        self._launcher = launcher
        self._sandbox = sandbox

    def kill(self) -> None:
        """Not by its number: that is another process's as soon as the launcher has buried this one."""
        self._sandbox.process.kill()

    def dispose(self) -> None:
        """Have the launcher end it."""
        self._launcher.end(self._sandbox)
        self._sandbox.process.close()
        self._sandbox.complaints.close()
        self.facts.close()

    def complaint(self) -> str:
        """Of bwrap, or of the launcher before it became bwrap."""
        return _decoded(self._sandbox.complaints)


class ChildSupervisor:
    """A supervisor that is a child of ours, or speaks through one.

    Args:
        process: the child.
        channel: our end of its channel.
        complaints_fd: where its standard error goes.
        end: removes what it leaves behind. Blocking; called once.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        channel: socket.socket,
        complaints_fd: int,
        end: Callable[[], None],
    ) -> None:
        self.channel = channel
        self.facts = GroupFacts()
        self._process = process
        self._complaints = KeptFile(complaints_fd, MAX_COMPLAINT_BYTES)
        self._end = end

    def kill(self) -> None:
        """Its channel ends with it; what else is left is removed by ``dispose``."""
        if self._process.poll() is None:
            self._process.kill()

    def dispose(self) -> None:
        """Remove it, and wait until it is gone."""
        self.kill()
        self._process.wait()
        self._end()
        self._complaints.close()

    def complaint(self) -> str:
        """What it wrote to its standard error."""
        return _decoded(self._complaints)


class UnsafeLocalSpawner:
    """Starts supervisors as ordinary processes: no isolation, only time limits and clean-up."""

    is_isolated = False

    def __init__(self, limits: SandboxSettings) -> None:
        self._limits = limits.model_copy(update={"processes": UNLIMITED_PROCESSES})
        self._archive = tempfile.NamedTemporaryFile(prefix="rollstream-", suffix=".pyz")  # noqa: SIM115 -- close()
        self._archive.write(inside_archive())
        self._archive.flush()

    def spawn(self) -> SupervisorProcess:
        """Start one in a group of its own."""
        try:
            return self._spawn()
        except OSError as error:
            raise IsolationError(f"no supervisor can be started: {explain_scarcity(error)}") from error

    def _spawn(self) -> SupervisorProcess:
        with ExitStack() as undo:
            folder = Path(tempfile.mkdtemp(prefix="rollstream-session-"))
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            undo.callback(theirs.close)
            complaints_fd = os.memfd_create("complaints")
            undo.callback(os.close, complaints_fd)
            limits = supervisor_limits(self._limits, workspace=str(folder), memory_folders=())
            command = supervisor_command(Interpreter(sys.executable), self._archive.name, theirs.fileno(), limits)
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
            undo.pop_all()
        theirs.close()
        return ChildSupervisor(process, ours, complaints_fd, lambda: shutil.rmtree(folder, ignore_errors=True))

    def explain(self, complaint: str) -> str:
        """Nothing is known about it."""
        return "see the message above"

    @property
    def enforcement(self) -> Enforcement:
        """Nothing is."""
        return Enforcement("none", "isolation is off")

    def close(self) -> None:
        """Remove what they were started from."""
        self._archive.close()


def _decoded(complaints: KeptFile) -> str:
    return complaints.read().decode(errors="backslashreplace").strip()
