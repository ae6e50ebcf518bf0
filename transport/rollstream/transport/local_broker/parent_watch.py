"""Runs a command that must not outlive the process that asked for it: ``parent_watch.py OWNER_PID COMMAND...``.

The command takes over this very process, so its pid is the one the owner knows. A small child stays behind and watches
from whom the command descends: when the owner dies, however it dies, the command becomes somebody else's child and is
told to stop, and is killed if it does not. (The kernel's parent-death signal fires when the *thread* that started a
process ends, which is no use to owners that start things from worker threads.)
"""

from __future__ import annotations

import os
import signal
import sys
import time

LOOK_EVERY_S = 0.2
GRACE_S = 10.0


def parent_of(pid: int) -> int | None:
    """Parent of a live process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return int(stat.read().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def watch(owner: int, command_pid: int) -> None:
    """Return when the command has ended; end it when its owner has."""
    kill_at: float | None = None
    while os.getppid() == command_pid:
        if kill_at is None and parent_of(command_pid) != owner:
            os.kill(command_pid, signal.SIGTERM)
            kill_at = time.monotonic() + GRACE_S
        elif kill_at is not None and time.monotonic() > kill_at:
            os.kill(command_pid, signal.SIGKILL)
        time.sleep(LOOK_EVERY_S)


def main() -> None:
    """Split into watcher and command."""
    owner, command = int(sys.argv[1]), sys.argv[2:]
    command_pid = os.getpid()
    if os.fork() == 0:
        watch(owner, command_pid)
        os._exit(0)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
