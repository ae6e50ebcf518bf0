"""Code that uses up what it can, with control groups and without: it is stopped, the host hardly notices, the next call works."""

# ruff: noqa: E501, ISC004 -- a payload is a line

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.replies import Execution
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory, SupervisedSandbox
from rollstream.tool_workers.settings import MIB, SandboxSettings

pytestmark = pytest.mark.sandbox

LIMITS = SandboxSettings(
    memory_bytes=128 * MIB,
    processes=32,
    files=2000,
    sockets=64,
    file_bytes=16 * MIB,
    workspace_bytes=32 * MIB,
    scratch_bytes=16 * MIB,
    call_cpu_s=3.0,
)
ROOMY = LIMITS.model_copy(
    update={"files": 1_000_000, "sockets": 10_000, "call_cpu_s": 600.0, "memory_bytes": 512 * MIB}
)
TIME_S = 2.0
MOST_HOST_MEMORY_BYTES = 512 * MIB
"""Four times the limit: watched memory overshoots for a tenth of a second, and others live on this machine too."""

KILLED = {
    "many empty files": ("for n in range(10**6): open(f'/workspace/{n}', 'w').close()", "files"),
    "many folders": ("import os\nfor n in range(10**6): os.mkdir(f'/tmp/{n}')", "files"),
    "folders in folders": ("import os\nwhile True:\n    os.mkdir('d'); os.chdir('d')", "files"),
    "many links": ("import os\nfor n in range(10**6): os.symlink('x' * 200, f'/dev/shm/{n}')", ("files", None)),
    "many sockets": (
        "import socket, time\nkept = [socket.socketpair() for _ in range(60)]\ntime.sleep(30)",
        "files",
    ),
    "one greedy allocation": ("import time\nb = bytearray(1 << 29)\ntime.sleep(30)", "memory"),
    "many modest processes": (
        "import os, time\nfor _ in range(12):\n    if os.fork() == 0: break\nb = bytearray(24 << 20)\ntime.sleep(30)",
        "memory",
    ),
    "shared mappings": (
        "import mmap, time\nkept = []\n"
        "for _ in range(40):\n    m = mmap.mmap(-1, 16 << 20); m.write(bytes(16 << 20)); kept.append(m)\ntime.sleep(30)",
        "memory",
    ),
    "all cores": (
        "import os\nfor _ in range(4): os.fork()\nwhile True: pass",
        ("cpu", "timeout"),
    ),
    "a flood of output": ("while True: print('x' * 10**5)", "output"),
    "an endless loop": ("while True: pass", "timeout"),
    "a fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", ("timeout", "cpu")),
    "forks that leave zombies": (
        "import os\nwhile True:\n    try:\n        if os.fork() == 0: os._exit(0)\n    except OSError: pass",
        ("timeout", "cpu"),
    ),
    "daemons of daemons": (
        "import os\nwhile True:\n    try:\n        if os.fork():\n            os._exit(0)\n        os.setsid()\n"
        "    except OSError: pass",
        (None, "timeout", "cpu"),
    ),
    "deaf to signals": (
        "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\ntime.sleep(60)",
        "timeout",
    ),
    "timers without end": (
        "import signal, time\nsignal.signal(signal.SIGALRM, lambda *_: None)\n"
        "signal.setitimer(signal.ITIMER_REAL, 1e-6, 1e-6)\nwhile True: time.sleep(1)",
        ("timeout", "cpu"),
    ),
}
"""Stopped: the code, and what for."""

REFUSED = {
    "four gigabytes": "bytearray(1 << 32)",
    "a thousand threads": "import threading, time\n[threading.Thread(target=time.sleep, args=(9,), daemon=True).start() for _ in range(1000)]",
    "a thousand descriptors": "import os\n[os.open('/dev/null', os.O_RDONLY) for _ in range(1000)]",
    "a large file": "f = open('/workspace/f', 'wb')\nfor _ in range(64): f.write(bytes(1 << 20)); f.flush()",
    "a sparse file": "open('/workspace/s', 'wb').truncate(10 << 40)",
    "a full workspace": "for n in range(64): open(f'/workspace/{n}', 'wb').write(bytes(1 << 20))",
    "full shared memory": "for n in range(64): open(f'/dev/shm/{n}', 'wb').write(bytes(1 << 20))",
    "locked memory": "import ctypes, os\nb = ctypes.create_string_buffer(1 << 24)\nl = ctypes.CDLL(None, use_errno=True)\n"
    "if l.mlock(b, len(b)): raise OSError(ctypes.get_errno(), 'refused')",
    "huge pipes": "import fcntl, os\nkept = []\nfor _ in range(100):\n    p = os.pipe(); kept.append(p); fcntl.fcntl(p[1], 1031, 1 << 21)",
    "large queued signals": "import ctypes, os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [34])\nl = ctypes.CDLL(None, use_errno=True)\n"
    "for _ in range(5000):\n    if l.sigqueue(os.getpid(), 34, 0): raise OSError(ctypes.get_errno(), 'refused')",
    "priority": "import os\nos.nice(-5)",
    "real-time": "import os\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "more than allowed": "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (10000, 10000))",
    "an endless stack": "import sys\nsys.setrecursionlimit(10**8)\ndef f(): f()\nf()",
}
"""Ends by an error of its own, with no more than allowed."""


@pytest_asyncio.fixture(params=["any", "watch"])
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[SupervisedSandbox]:
    limits = LIMITS.model_copy(update={"memory_enforcement": request.param})
    async with SandboxFactory(build_spawner("bwrap", limits), limits, max_running_programs=2) as factory:
        opened = await factory.open()
        yield opened
        await opened.close()


def available_bytes() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


async def used_by(sandbox: SupervisedSandbox, source: str) -> tuple[Execution, float]:
    before, started = available_bytes(), time.monotonic()
    execution = await sandbox.python(source, timeout_s=TIME_S)
    assert before - available_bytes() < MOST_HOST_MEMORY_BYTES
    return execution, time.monotonic() - started


async def next_call_works(sandbox: SupervisedSandbox) -> None:
    cleaned = await sandbox.bash("rm -rf /workspace/* /tmp/* /dev/shm/*; echo clean", timeout_s=10)
    assert cleaned.output.endswith("clean\n")
    again = await sandbox.bash("ls -A /workspace /tmp /dev/shm; cat /proc/[0-9]*/comm | sort | uniq -c", timeout_s=10)
    assert (again.cause, again.exit_code) == (None, 0)
    assert "python3" in again.output  # the supervisor; nothing else is left
    assert (await sandbox.python("print(6 * 7)", timeout_s=10)).output == "42\n"


@pytest.mark.parametrize("name", KILLED)
async def test_a_bomb_is_stopped(name: str, sandbox: SupervisedSandbox) -> None:
    source, causes = KILLED[name]
    execution, took_s = await used_by(sandbox, source)
    assert execution.cause in (causes if isinstance(causes, tuple) else (causes,)), execution
    assert took_s < TIME_S + 1.5
    await next_call_works(sandbox)


@pytest.mark.parametrize("name", REFUSED)
async def test_more_than_allowed_is_refused(name: str, sandbox: SupervisedSandbox) -> None:
    execution, _ = await used_by(sandbox, REFUSED[name])
    assert execution.exit_code != 0 or execution.cause is not None, execution.output
    await next_call_works(sandbox)


async def test_where_more_is_allowed_the_same_bombs_go_further() -> None:
    async with SandboxFactory(build_spawner("bwrap", ROOMY), ROOMY, max_running_programs=2) as factory:
        sandbox = await factory.open()
        for name, source in (
            ("files", "for n in range(3000): open(f'/workspace/{n}', 'w').close()\nprint('done')"),
            (
                "sockets",
                "import socket, time\nkept = [socket.socketpair() for _ in range(60)]\ntime.sleep(0.3); print('done')",
            ),
            ("memory", "import time\nb = bytearray(200 << 20)\ntime.sleep(0.3); print('done')"),
        ):
            assert (await sandbox.python(source, timeout_s=10)).output == "done\n", name
        await sandbox.close()


async def test_a_session_that_has_used_up_its_processor_time_runs_nothing_more() -> None:
    limits = LIMITS.model_copy(update={"session_cpu_s": 1.0, "call_cpu_s": 600.0})
    async with SandboxFactory(build_spawner("bwrap", limits), limits, max_running_programs=2) as factory:
        sandbox = await factory.open()
        causes = [(await sandbox.python("while True: pass", timeout_s=0.6)).cause for _ in range(4)]
        assert causes[0] == "timeout"
        assert causes[-1] == "cpu"
        late = await sandbox.bash("echo late", timeout_s=10)
        assert (late.cause, late.output) == ("cpu", "")
        await sandbox.close()


async def test_processes_killed_for_memory_are_told_although_their_parent_lives() -> None:
    async with SandboxFactory(build_spawner("bwrap", LIMITS), LIMITS, max_running_programs=2) as factory:
        sandbox = await factory.open()
        if factory.enforcement.kind == "none":
            pytest.skip("control groups cannot be had here")
        # Faster than the watch looks: only the kernel can stop it.
        source = (
            "import os\nfor _ in range(6):\n    if os.fork() == 0:\n        b = bytearray(100 << 20)\n        os._exit(0)\n"
            "for _ in range(6): os.wait()\nprint('parent lives')"
        )
        seen = {(await sandbox.python(source, timeout_s=10)).cause for _ in range(3)}
        assert seen <= {"memory", None}
        assert "memory" in seen
        await next_call_works(sandbox)
        await sandbox.close()
