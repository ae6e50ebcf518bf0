"""A supervisor behind the standard streams of a command: of a container engine, or of `kubectl exec`.

It needs nothing of ours inside. What runs there is sent along first, into memory that only the supervisor can reach.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.archives import inside_archive
from rollstream.tool_workers.sandbox.bubblewrap import ENVIRONMENT, WORKSPACE, supervisor_limits
from rollstream.tool_workers.sandbox.seccomp_filter import seccomp_programs
from rollstream.tool_workers.sandbox.spawning import ChildSupervisor
from rollstream.tool_workers.settings import SandboxSettings

END_TIMEOUT_S = 30.0
BOOTSTRAP = """
import os, runpy, sys
def taken():
    size = int.from_bytes(exactly(4), "big")
    fd = os.memfd_create("rollstream")
    left = memoryview(exactly(size))
    while left: left = left[os.write(fd, left):]
    return "/proc/self/fd/%d" % fd
def exactly(size):
    got = b""
    while len(got) < size:
        more = os.read(0, size - len(got))
        if not more: sys.exit(1)
        got += more
    return got
archive, first, asking, refusing = taken(), taken(), taken(), taken()
limits = sys.argv[1].replace("@first", first).replace("@asking", asking).replace("@refusing", refusing)
sys.argv = [archive, "stdio", limits]
sys.path.insert(0, archive)
os.environ.clear()
os.environ.update(@environment)
runpy.run_path(archive, run_name="__main__")
"""
"""Reads four pieces with a length before each, then is the supervisor."""


def bootstrap_command(
    interpreter: str, limits: SandboxSettings, *, workspace: str = WORKSPACE, memory_folders: tuple[str, ...] = ()
) -> list[str]:
    """What is run inside. ``memory_folders``: those that are in memory there."""
    text = supervisor_limits(
        limits,
        workspace=workspace,
        memory_folders=memory_folders,
        first_filter_path="@first",
        filter_path="@asking",
        fallback_filter_path="@refusing",
        asked_names=seccomp_programs().asked_names,
    )
    environment = ENVIRONMENT | {"HOME": workspace}
    return [interpreter, "-I", "-B", "-c", BOOTSTRAP.replace("@environment", repr(environment)), text]


class StreamedSupervisor(ChildSupervisor):
    """A running one.

    Args:
        command: what its streams belong to.
        end: removes what the command has started. Blocking; called once.

    Raises:
        IsolationError: the command cannot be run.
    """

    def __init__(self, command: Sequence[str], end: Callable[[], None]) -> None:
        complaints_fd = os.memfd_create("complaints")
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = subprocess.Popen(
                    list(command),
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=complaints_fd,
                    cwd="/",
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            os.close(complaints_fd)
            raise IsolationError(f"{command[0]!r} cannot be run: {error.strerror}; install it") from error
        super().__init__(process, ours, complaints_fd, end)
        sender = threading.Thread(target=self._send_along, name="sandbox-bootstrap", daemon=True)
        sender.start()
        sender.join(END_TIMEOUT_S)

    def _send_along(self) -> None:
        filters = seccomp_programs()
        with suppress(OSError):  # its complaint says why
            for content in (inside_archive(), filters.allowing, filters.asking, filters.refusing):
                self.channel.sendall(len(content).to_bytes(4, "big") + content)
