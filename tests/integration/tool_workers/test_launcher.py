"""What starts sandboxes: what it holds, what it leaves behind, and what happens when something is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.outside.cgroups import find_mounts, start_ticks
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner
from rollstream.tool_workers.settings import SandboxSettings

pytestmark = pytest.mark.sandbox

WORKER = """
import asyncio
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.settings import SandboxSettings
async def main():
    limits = SandboxSettings()
    async with SandboxFactory(build_spawner("bwrap", limits), limits, max_running_programs=8) as factory:
        boxes = [await factory.open() for _ in range(4)]
        print("ready", flush=True)
        sleep = "trap '' TERM; setsid nohup sleep 7654 & sleep 7654"
        await asyncio.gather(*(box.bash(sleep, timeout_s=60) for box in boxes))
asyncio.run(main())
"""
LIMITS = SandboxSettings()


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"SECRET_OF_THE_WORKER": "canary-in-the-environment"}
    process = subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
        wait_until(lambda: len(sleepers()) == 8)
        yield process
        process.kill()
        process.wait()


def launcher_of(pid: int) -> int:
    return next(child for child in children(pid) if b"/proc/self/fd/" in command_line(child))


def test_the_launcher_holds_nothing_of_the_worker(worker: subprocess.Popen[bytes]) -> None:
    launcher = launcher_of(worker.pid)
    assert Path(f"/proc/{launcher}/environ").read_bytes() == b""
    held = {os.readlink(f"/proc/{launcher}/fd/{fd}") for fd in os.listdir(f"/proc/{launcher}/fd")}
    assert all(each.startswith(("/dev/null", "socket:", "/memfd:complaints")) for each in held), held
    for sandbox in children(launcher):
        assert Path(f"/proc/{sandbox}/environ").read_bytes() == b""
    if os.geteuid() == 0:
        users = {Path(f"/proc/{sandbox}").stat().st_uid for sandbox in children(launcher)}
        assert len(users) == 4
        assert 0 not in users


def test_a_killed_worker_leaves_no_process_after_200_ms(worker: subprocess.Popen[bytes]) -> None:
    launcher = launcher_of(worker.pid)
    killed_at = time.monotonic()
    worker.kill()
    worker.wait()
    wait_until(lambda: not sleepers() and start_ticks(launcher) == 0)
    assert time.monotonic() - killed_at < 0.2


def test_a_killed_launcher_takes_its_sandboxes_along(worker: subprocess.Popen[bytes]) -> None:
    os.kill(launcher_of(worker.pid), signal.SIGKILL)
    wait_until(lambda: not sleepers())


def test_groups_of_the_dead_are_removed_at_the_next_start(worker: subprocess.Popen[bytes]) -> None:
    launcher = launcher_of(worker.pid)
    before = groups_of(launcher)
    if not before:
        pytest.skip("control groups cannot be had here")
    assert sum(len(list(group.glob("s*"))) for group in before) >= 4
    worker.send_signal(signal.SIGSTOP)  # so that nobody is told
    os.kill(launcher, signal.SIGKILL)
    wait_until(lambda: not sleepers())
    worker.kill()
    worker.wait()
    assert groups_of(launcher)
    spawner = BubblewrapSpawner(LIMITS)
    spawner.launcher.start()
    wait_until(lambda: not groups_of(launcher))
    spawner.close()


async def test_a_launcher_that_died_is_replaced() -> None:
    spawner = BubblewrapSpawner(LIMITS)
    async with SandboxFactory(spawner, LIMITS, max_running_programs=1) as factory:
        first = await factory.open()
        own = next(child for child in children(os.getpid()) if b"/proc/self/fd/" in command_line(child))
        os.kill(own, signal.SIGKILL)
        await first.close()
        for _ in range(3):  # the one that finds out may fail
            try:
                second = await factory.open()
            except IsolationError:
                continue
            assert (await second.bash("echo again", timeout_s=10)).output == "again\n"
            await second.close()
            return
    raise AssertionError("no launcher was started again")


async def test_closed_sandboxes_leave_no_group_and_no_process() -> None:
    spawner = BubblewrapSpawner(LIMITS)
    async with SandboxFactory(spawner, LIMITS, max_running_programs=4) as factory:
        for _ in range(5):
            sandbox = await factory.open()
            await sandbox.bash("setsid sleep 7655 &", timeout_s=10)
            await sandbox.close()
        own = next(child for child in children(os.getpid()) if b"/proc/self/fd/" in command_line(child))
        wait_until(lambda: not any(list(group.glob("s*")) for group in groups_of(own)))
        wait_until(lambda: children(own) == [])
    assert not groups_of(own)
    assert not sleepers("7655")


AS_PROCESS_1 = """
import asyncio, ctypes, os
from pathlib import Path
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.settings import SandboxSettings
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # what others leave dead comes to us, as to process 1
limits = SandboxSettings()
async def main():
    async with SandboxFactory(build_spawner("bwrap", limits), limits, max_running_programs=8) as factory:
        for _ in range(4):
            boxes = [await factory.open() for _ in range(4)]
            await asyncio.gather(*(box.bash("setsid sleep 7656 &", timeout_s=60) for box in boxes))
            await asyncio.gather(*(box.close() for box in boxes))
        forgotten = [await factory.open() for _ in range(4)]
asyncio.run(main())
left = [task.read_text() for task in Path("/proc/self/task").glob("*/children")]
print(sum(len(each.split()) for each in left))
"""


def test_a_worker_that_is_process_1_of_a_container_is_left_with_nobody_to_bury() -> None:
    done = subprocess.run([sys.executable, "-c", AS_PROCESS_1], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "0\n"


def groups_of(launcher: int) -> list[Path]:
    mounts = find_mounts(Path("/proc/mounts").read_text(), Path("/proc/self/cgroup").read_text())
    places: set[Path] = {folder for pair in mounts.v1.values() for folder in pair}
    if mounts.v2 is not None:
        places.add(mounts.v2)
    return [group for place in places for group in place.glob(f"rollstream-{launcher}-*")]


def children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def sleepers(seconds: str = "7654") -> list[str]:
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", seconds.encode()]:
            found.append(folder.name)
    return found


def wait_until(holds: Callable[[], bool]) -> None:
    """For ten seconds at most: nobody is told about processes that are not children."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
