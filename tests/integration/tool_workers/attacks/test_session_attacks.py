"""Long-lived shells and interpreters survive what runs in them, and nothing goes on when a call is over."""

from __future__ import annotations

import asyncio
import os
import select
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hostile_ground import PRELUDE, opened
from session_attacks import INTERPRETER, LEFT_RUNNING, SHELL, WAKES_ITSELF, WOKEN

from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory, SupervisedSandbox
from rollstream.tool_workers.settings import MIB, SandboxSettings

pytestmark = pytest.mark.sandbox

LIMITS = SandboxSettings(memory_bytes=128 * MIB, processes=32, flood_bytes=100_000, output_bytes=4000)


async def test_a_shell_is_usable_after_whatever_was_done_to_it() -> None:
    wrong: dict[str, object] = {}
    async with opened(build_spawner("bwrap", LIMITS), LIMITS) as sandbox:
        for name, command in SHELL.items():
            await sandbox.shell(command, timeout_s=1)
            said = [await sandbox.shell('echo "$((6 * 7))"', timeout_s=1) for _ in range(3)]
            if not any(each.output == "42\n" or "\n42\n" in each.output for each in said):
                wrong[name] = [(each.output, each.cause, each.is_restarted) for each in said]
            await sandbox.restart("shell")
            assert (await sandbox.shell("echo fresh", timeout_s=5)).output == "fresh\n", name
    assert wrong == {}


async def test_an_interpreter_is_usable_after_whatever_was_done_to_it() -> None:
    wrong: dict[str, object] = {}
    async with opened(build_spawner("bwrap", LIMITS), LIMITS) as sandbox:
        for name, source in INTERPRETER.items():
            await sandbox.interpreter(source, timeout_s=1)
            said = [await sandbox.interpreter("6 * 7", timeout_s=1) for _ in range(3)]
            is_explained = all(each.exit_code == 1 and "Error" in each.output for each in said)
            if not any(each.output == "42\n" or each.is_restarted for each in said) and not is_explained:
                wrong[name] = [(each.output, each.cause, each.exit_code) for each in said]
            await sandbox.restart("interpreter")
            assert (await sandbox.interpreter("'fresh'", timeout_s=5)).output == "'fresh'\n", name
    assert wrong == {}


def marked(mark: str) -> str:
    """The words ``run`` and ``tick`` of payloads: both show on the host and in a file."""
    return PRELUDE + (
        f"import os\nlibc.prctl(15, {mark.encode()!r}, 0, 0, 0)\n"
        "def tick():\n    with open('/workspace/ticks', 'a') as f: f.write('x')\n"
        f"def run():\n    libc.prctl(15, {mark.encode()!r}, 0, 0, 0)\n"
        "    while True:\n        tick(); time.sleep(0.002)\n"
        "tick()\n"
    )


def seen_on_the_host(mark: str) -> int:
    """Threads of that name that are neither dead nor stopped."""
    found = 0
    for text in stats_of_all_threads():
        name, _, rest = text.partition("(")[2].rpartition(")")
        found += name == mark and rest.split()[0] not in "TtZX"
    return found


@pytest.mark.parametrize("is_session", [False, True])
@pytest.mark.parametrize("name", LEFT_RUNNING)
async def test_nothing_is_left_running_by_a_call(name: str, is_session: bool) -> None:
    mark = f"m{uuid.uuid4().hex[:12]}"
    async with opened(build_spawner("bwrap", LIMITS), LIMITS) as sandbox:
        if is_session:  # then its shell and interpreter live on, and all others have to be found one by one
            await sandbox.interpreter("x = 1", timeout_s=5)
            await sandbox.shell("x=1", timeout_s=5)
        await sandbox.python(marked(mark) + LEFT_RUNNING[name] + "\ntime.sleep(0.2)", timeout_s=3)
        assert seen_on_the_host(mark) == 0
        sizes = {(await sandbox.bash("stat -c %s ticks; sleep 0.2", timeout_s=5)).output for _ in range(2)}
        assert len(sizes) == 1
        assert int(sizes.pop()) > 1, "it has never run"
        if is_session:
            assert (await sandbox.shell("echo $x", timeout_s=5)).output in ("1\n", "\n")


async def test_an_interpreter_that_children_wake_is_stopped_between_calls_all_the_same() -> None:
    mark = f"m{uuid.uuid4().hex[:12]}"
    async with opened(build_spawner("bwrap", LIMITS), LIMITS) as sandbox:
        for _ in range(3):
            woken = await sandbox.interpreter(marked(mark) + WOKEN, timeout_s=5)
            assert woken.cause is None
            assert seen_on_the_host(mark) == 0
        grown = [(await sandbox.bash("stat -c %s ticks; sleep 0.2", timeout_s=5)).output for _ in range(2)]
        assert grown[0] == grown[1]


@pytest.mark.parametrize("name", WAKES_ITSELF)
async def test_an_interpreter_that_the_kernel_wakes_is_ended(name: str) -> None:
    mark = f"m{uuid.uuid4().hex[:12]}"
    running = "threading.Thread(target=run, daemon=True).start()\n"
    async with opened(build_spawner("bwrap", LIMITS), LIMITS) as sandbox:
        await sandbox.shell("x=5", timeout_s=5)
        woken = await sandbox.interpreter(marked(mark) + WAKES_ITSELF[name] + "\n" + running, timeout_s=5)
        assert (woken.exit_code, woken.cause) == (0, None)
        assert await asyncio.to_thread(is_gone_from_the_host, mark)
        assert int((await sandbox.bash("stat -c %s ticks", timeout_s=5)).output) < 50, "it has run for long"
        again = await sandbox.interpreter("6 * 7", timeout_s=5)
        assert (again.output, again.is_restarted) == ("42\n", True)
        assert (await sandbox.shell("echo usable", timeout_s=5)).output == "usable\n"


def is_gone_from_the_host(mark: str) -> bool:
    """In five seconds at most, whatever state it is in: nobody tells of processes that are not children."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not any(f"({mark})" in text for text in stats_of_all_threads()):
            return True
        time.sleep(0.01)
    return False


def stats_of_all_threads() -> list[str]:
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/task/*/stat"):
        with suppress(OSError):
            found.append(path.read_text())
    return found


async def test_one_who_runs_is_seen_on_the_host() -> None:
    """The control of the tests above."""
    mark = f"m{uuid.uuid4().hex[:12]}"
    seen: set[bool] = set()
    async with opened(build_spawner("bwrap", LIMITS), LIMITS) as sandbox:
        await sandbox.python("print('warm')", timeout_s=5)
        await watched(sandbox, marked(mark) + "run()", lambda: seen.add(seen_on_the_host(mark) > 0))
    assert True in seen


async def watched(sandbox: SupervisedSandbox, code: str, look: Callable[[], None]) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(sandbox.python(code, timeout_s=1))
        while not running.done():
            await asyncio.wait([running], timeout=0.05)
            await asyncio.to_thread(look)


async def test_what_is_stopped_between_calls_ends_with_a_supervisor_that_is_not_process_1() -> None:
    async with SandboxFactory(build_spawner("unsafe-local", LIMITS), LIMITS, max_running_programs=1) as factory:
        sandbox = await factory.open()
        pids = [
            int((await sandbox.interpreter("import os; os.getpid()", timeout_s=5)).output),
            int((await sandbox.shell("echo $$", timeout_s=5)).output),
        ]
        ends = [os.pidfd_open(pid) for pid in pids]
        await sandbox.close()
        try:
            for end in ends:
                assert (await asyncio.to_thread(select.select, [end], [], [], 5))[0] == [end]
        finally:
            for end in ends:
                os.close(end)
