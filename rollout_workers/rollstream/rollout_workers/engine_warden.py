"""Ends vLLM's processes when the rollout worker that has started them is dead: ``engine_warden.py OWNER_PID``.

vLLM's engine process outlives a worker that is killed, memory and all; one that is killed while its engine starts, by
minutes. This runs beside the worker, in a session of its own, and costs nothing until the worker is gone.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

OWNER_VARIABLE = "_VLLM_WORKER_OWNER"
"""Process id of the rollout worker; set by it, inherited by everything it starts."""
OF_VLLM = (b"VLLM::", b"multiprocessing")
"""What the command lines of vLLM's processes say, before and after they have named themselves."""
LOOK_EVERY_S = 0.5
ROUNDS = 10
ROUND_S = 0.2
"""What is just being started is found in a later round."""


@cache
def start_warden() -> None:
    """Start one for this process; once is enough."""
    environment = {name: value for name, value in os.environ.items() if name != OWNER_VARIABLE}
    nowhere = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
    os.posix_spawn(command[0], command, environment, file_actions=nowhere, setsid=True)


def started(pid: int) -> str | None:
    """When a process was started, in ticks; None if it is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def children(pid: int) -> dict[int, str | None]:
    """All descendants of a process that are vLLM's, with when they were started."""
    found: dict[int, str | None] = {}
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, file.read_text().split()):
                if any(word in Path(f"/proc/{child}/cmdline").read_bytes() for word in OF_VLLM):
                    found[child] = started(child)
                    found |= children(child)
    return found


def marked(owner_pid: int) -> dict[int, str | None]:
    """Processes of vLLM that the owner has started and that have not named themselves yet, which hides their marks."""
    marker = f"{OWNER_VARIABLE}={owner_pid}\0".encode()
    found: dict[int, str | None] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                is_vllm = any(word in (entry / "cmdline").read_bytes() for word in OF_VLLM)
                if is_vllm and marker in (entry / "environ").read_bytes() + b"\0":
                    found[int(entry.name)] = started(int(entry.name))
    return found


def watch(owner_pid: int) -> None:
    """Remember the owner's children until its end, then kill what it has left."""
    seen: dict[int, str | None] = {}
    with suppress(ProcessLookupError):
        owner = os.pidfd_open(owner_pid)
        while not select.select([owner], [], [], LOOK_EVERY_S)[0]:
            seen |= children(owner_pid)
    for _ in range(ROUNDS):
        for pid, ticks in (seen | marked(owner_pid)).items():
            if ticks is not None and started(pid) == ticks:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(ROUND_S)


if __name__ == "__main__":
    watch(int(sys.argv[1]))
