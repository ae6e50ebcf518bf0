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


def orphans(owner_pid: int) -> list[int]:
    """Processes of vLLM that the owner has started."""
    marker = f"{OWNER_VARIABLE}={owner_pid}\0".encode()
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                is_vllm = any(word in (entry / "cmdline").read_bytes() for word in OF_VLLM)
                if is_vllm and marker in (entry / "environ").read_bytes() + b"\0":
                    found.append(int(entry.name))
    return found


def watch(owner_pid: int) -> None:
    """Wait for the owner's end, then kill what it has left."""
    with suppress(ProcessLookupError):
        select.select([os.pidfd_open(owner_pid)], [], [])
    for _ in range(ROUNDS):
        for pid in orphans(owner_pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(ROUND_S)


if __name__ == "__main__":
    watch(int(sys.argv[1]))
