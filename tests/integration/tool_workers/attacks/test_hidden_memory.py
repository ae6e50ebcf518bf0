"""What code takes beyond its memory is stopped, also where it is in no process's memory and no control group helps."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hidden_memory import COUNTED, HELD_S, HIDDEN
from hostile_ground import PRELUDE, WeakenedSpawner, opened

from rollstream.tool_workers.sandbox.replies import Execution
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory, SupervisedSandbox
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner
from rollstream.tool_workers.settings import MIB, SandboxSettings

pytestmark = pytest.mark.sandbox

TIGHT = SandboxSettings(memory_bytes=64 * MIB, files=3000, sockets=300, memory_enforcement="watch")
ROOMY = TIGHT.model_copy(update={"memory_bytes": 4096 * MIB, "files": 100_000, "sockets": 5000})
LOOK_S = 0.02
SETTLING_S = 0.15
SETTLED_BYTES = 4 * MIB
ALLOWANCE_BYTES = 400 * MIB
"""Watched memory overshoots for a tenth of a second, shared mappings may have twice the limit."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
POOL = Path("/proc/sys/vm/nr_hugepages")


def available_bytes() -> int:
    """Of the host; what each processor keeps to itself of freed memory is told elsewhere, to root."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    kept_pages = 0
    with suppress(PermissionError):
        words = [line.split() for line in Path("/proc/zoneinfo").read_text().splitlines()]
        kept_pages = sum(int(each[1]) for each in words if each[:1] == ["count:"])
    return int(lines["MemAvailable"].split()[0]) * 1024 + kept_pages * PAGE_BYTES


async def settled_bytes() -> int:
    """Once nobody frees or takes much any more: a sandbox that has ended is cleaned up behind our back."""
    deadline = time.monotonic() + 10
    before, now = 0, available_bytes()
    while abs(now - before) > SETTLED_BYTES:
        assert time.monotonic() < deadline
        await asyncio.sleep(SETTLING_S)
        before, now = now, available_bytes()
    return now


async def taken_by(sandbox: SupervisedSandbox, code: str) -> tuple[Execution, int]:
    """How it went, and the most host memory that was missing meanwhile."""
    before = most = await settled_bytes()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(sandbox.python(PRELUDE + code, timeout_s=12))
        while not running.done():
            most = min(most, available_bytes())
            await asyncio.wait([running], timeout=LOOK_S)
    return running.result(), before - most


@pytest.mark.parametrize("enforcement", ["any", "watch"])
@pytest.mark.parametrize("name", HIDDEN)
async def test_memory_that_hides_is_limited_all_the_same(name: str, enforcement: str) -> None:
    limits = TIGHT.model_copy(update={"memory_enforcement": enforcement})
    async with opened(BubblewrapSpawner(limits), limits) as sandbox:
        code, _ = HIDDEN[name]
        execution, taken_bytes = await taken_by(sandbox, code)
        assert "END" not in execution.output
        assert execution.cause == "memory" or execution.exit_code != 0
        assert taken_bytes < limits.memory_bytes + ALLOWANCE_BYTES, execution
        assert (await sandbox.bash("echo alive", timeout_s=10)).output == "alive\n"


@pytest.mark.parametrize("name", HIDDEN)
async def test_with_a_higher_limit_it_is_taken_and_seen_from_outside(name: str) -> None:
    code, layer = HIDDEN[name]
    spawner = WeakenedSpawner(ROOMY, layer) if layer else BubblewrapSpawner(ROOMY)
    async with opened(spawner, ROOMY) as sandbox:
        execution, taken_bytes = await taken_by(sandbox, code)
        if "AssertionError" in execution.output:
            pytest.skip(f"this kernel does not offer it: {execution.output}")
        assert execution.output == "END\n", execution
        assert taken_bytes > TIGHT.memory_bytes + ALLOWANCE_BYTES


@pytest.mark.parametrize("name", COUNTED)
async def test_too_many_things_of_the_kernel_end_a_call(name: str) -> None:
    async with opened(BubblewrapSpawner(TIGHT), TIGHT) as sandbox:
        execution = await sandbox.python(PRELUDE + COUNTED[name], timeout_s=12)
        assert execution.cause == "files", execution
        cleaned = await sandbox.bash("rm -rf /workspace/* /tmp/*; echo clean", timeout_s=10)
        assert cleaned.output.endswith("clean\n")
        assert (await sandbox.python("import os; print(os.openpty() != ())", timeout_s=10)).output == "True\n"


async def causes_of_its_end(code: str) -> list[str | None]:
    """Under the tight limit of memory, and under the roomy one."""
    causes: list[str | None] = []
    for limits in (TIGHT, ROOMY):
        async with opened(BubblewrapSpawner(limits), limits) as sandbox:
            causes.append((await sandbox.python(code, timeout_s=12)).cause)
    return causes


async def test_page_tables_count_as_memory() -> None:
    """One touched page in each 2 MiB, given back at once: nothing is left but the tables."""
    code = PRELUDE + (
        "pids = []\nfor _ in range(32):\n"
        "    pids.append(os.fork())\n"
        "    if pids[-1] == 0:\n"
        "        m = mmap.mmap(-1, 3 << 30, flags=0x4022)\n"
        "        for n in range(0, 3 << 30, 2 << 20): m[n] = 1\n"
        f"        m.madvise(mmap.MADV_DONTNEED); time.sleep({4 * HELD_S}); os._exit(0)\n"
        f"time.sleep({2 * HELD_S})\nprint('END')"
    )
    assert await causes_of_its_end(code) == ["memory", None]


async def test_mappings_count_as_memory() -> None:
    code = PRELUDE + (
        "libc.mmap.restype = ctypes.c_void_p\n"
        "libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]\n"
        "for _ in range(20):\n"
        "    if os.fork() == 0:\n"
        "        a = libc.mmap(None, ctypes.c_size_t(40000 * 4096), 0, 0x22, -1, 0)\n"
        "        for n in range(0, 40000, 2): libc.mprotect(a + n * 4096, 4096, 1)\n"
        f"        time.sleep({8 * HELD_S}); os._exit(0)\n"
        f"time.sleep({4 * HELD_S})\nprint('END')"
    )
    assert await causes_of_its_end(code) == ["memory", None]


async def test_memory_that_takes_long_to_look_at_ends_the_call_and_not_the_session() -> None:
    """Each of many busy processes maps one file many times, so that to count it once takes the kernel long."""
    limits = SandboxSettings(memory_enforcement="watch")
    code = PRELUDE + (
        "with open('/tmp/big', 'wb') as f: f.write(bytes(30 << 20))\n"
        "f = os.open('/tmp/big', os.O_RDONLY)\n"
        "for _ in range(50):\n"
        "    if os.fork() == 0:\n"
        "        kept = [mmap.mmap(f, 30 << 20, flags=0x8002, prot=1) for _ in range(60)]; os.setsid()\n"
        "        while True: pass\n"
        "time.sleep(100)"
    )
    async with opened(BubblewrapSpawner(limits), limits) as sandbox:
        started = time.monotonic()
        execution = await sandbox.python(code, timeout_s=40)
        assert execution.cause == "memory"
        assert time.monotonic() - started < 20
        assert (await sandbox.bash("echo alive", timeout_s=10)).output == "alive\n"


async def test_a_refused_mapping_does_not_stand_in_the_way_of_later_ones() -> None:
    code = PRELUDE + "say(works(lambda: mmap.mmap(-1, 3 << 30)))\nsay(works(lambda: mmap.mmap(-1, 4096)))"
    async with opened(BubblewrapSpawner(TIGHT), TIGHT) as sandbox:
        assert (await sandbox.python(code, timeout_s=10)).output == "HELD\nOUT\n"


async def test_processes_that_take_long_to_end_do_not_lose_the_sandbox() -> None:
    """What they map many times is one small file, so it is no memory; the kernel has to take it apart all the same."""
    code = PRELUDE + (
        "with open('/tmp/big', 'wb') as f: f.write(bytes(30 << 20))\n"
        "f = os.open('/tmp/big', os.O_RDONLY)\n"
        "for _ in range(40):\n"
        "    if os.fork() == 0:\n"
        "        kept = [mmap.mmap(f, 30 << 20, flags=0x8002, prot=1) for _ in range(80)]\n"
        "        time.sleep(100)\n"
        "time.sleep(1)"
    )
    limits = SandboxSettings()
    async with opened(BubblewrapSpawner(limits), limits) as sandbox:
        execution = await sandbox.python(code, timeout_s=20)
        assert execution.cause is None, execution
        assert (await sandbox.bash("echo alive", timeout_s=10)).output == "alive\n"


@pytest.fixture
def pool_of_huge_pages() -> Iterator[None]:
    """Two of the machine's."""
    before = POOL.read_text() if POOL.exists() else ""
    with suppress(OSError):
        POOL.write_text(str(int(before or 0) + 2))
    if not POOL.exists() or POOL.read_text() == before:
        pytest.skip("no huge pages can be had here")
    yield
    POOL.write_text(before)


async def test_the_machines_huge_pages_are_not_for_sandboxes(pool_of_huge_pages: None) -> None:
    code = (
        PRELUDE
        + "for kind in (1, 2): say(works(lambda: bool(mmap.mmap(-1, 2 << 20, flags=kind | 0x40020).write(b'x'))))"
    )
    said: list[str] = []
    for spawner in (BubblewrapSpawner(TIGHT), WeakenedSpawner(TIGHT, "filter")):
        async with opened(spawner, TIGHT) as sandbox:
            said.append((await sandbox.python(code, timeout_s=10)).output)
    assert said == ["HELD\nHELD\n", "OUT\nOUT\n"]


async def test_a_few_of_them_are_honest() -> None:
    honest = (
        "kept = [os.openpty() for _ in range(8)]; pairs = [socket.socketpair() for _ in range(20)]\n"
        "m = mmap.mmap(-1, 16 << 20); m.write(bytes(16 << 20))\n"
        "f = open('/workspace/f', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "a, b = pairs[0]; a.setsockopt(1, 7, 1 << 20); a.send(bytes(1000)); assert len(b.recv(2000)) == 1000\n"
        "time.sleep(0.3); print('END')"
    )
    async with opened(BubblewrapSpawner(TIGHT), TIGHT) as sandbox:
        for _ in range(12):  # what was shared by earlier calls does not count against later ones
            execution = await sandbox.python(PRELUDE + honest, timeout_s=12)
            assert (execution.output, execution.cause) == ("END\n", None)


async def test_one_sandbox_cannot_take_the_terminals_of_another() -> None:
    async with SandboxFactory(BubblewrapSpawner(TIGHT), TIGHT, max_running_programs=2) as factory:
        greedy, modest = await factory.open(), await factory.open()
        taking = asyncio.create_task(greedy.python(PRELUDE + COUNTED["terminals"], timeout_s=12))
        assert (await taking).cause == "files"
        assert (await modest.python("import os; print(len(os.openpty()))", timeout_s=10)).output == "2\n"
        await greedy.close()
        await modest.close()
