"""What starts sandboxes: what it holds, what it leaves behind, and what happens when something is killed."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.launching import LauncherProcess
from rollstream.tool_workers.sandbox.outside.cgroups import find_mounts, start_ticks
from rollstream.tool_workers.sandbox.replies import SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner, Spawner, UnsafeLocalSpawner
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


async def test_a_launcher_that_runs_out_of_descriptors_anywhere_fails_one_sandbox_and_no_other() -> None:
    async with SandboxFactory(BubblewrapSpawner(LIMITS), LIMITS, max_running_programs=4) as factory:
        innocent = await factory.open()
        launcher = own_launcher()
        held, kept = len(os.listdir(f"/proc/{launcher}/fd")), children(launcher)
        failures: list[str] = []
        _, hard = resource.prlimit(launcher, resource.RLIMIT_NOFILE)
        for allowed in range(held, 200):  # every step of the way to a sandbox fails once
            resource.prlimit(launcher, resource.RLIMIT_NOFILE, (allowed, hard))
            try:
                opened = await factory.open()
            except IsolationError as error:
                failures.append(str(error))
            else:
                await opened.close()
                break
        assert "open files are allowed here: raise the limit" in failures[0]
        assert len([each for each in failures if each.startswith("the launcher cannot start a sandbox")]) > 5
        assert any("cannot start a sandbox: OSError" in each for each in failures), "after the fork"
        assert not any("does not answer" in each for each in failures)
        wait_until(lambda: children(launcher) == kept)
        wait_until(lambda: all(len(list(group.glob("s*"))) == 1 for group in groups_of(launcher)))
        assert len(os.listdir(f"/proc/{launcher}/fd")) == held
        assert (await innocent.bash("echo unharmed", timeout_s=10)).output == "unharmed\n"
        await innocent.close()


SHORT_OF_PROCESSES = """
import asyncio, encodings.idna, multiprocessing.util, os, resource, signal, stat, sys, tempfile
from pathlib import Path
from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.archives import compiled_archive, launcher_archive
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner
from rollstream.tool_workers.settings import SandboxSettings

async def main():
    limits = SandboxSettings()
    spawner = BubblewrapSpawner(limits)
    compiled_archive(spawner.interpreter.path); launcher_archive()
    if os.geteuid() == 0:
        os.setgroups([]); os.setgid(64321); os.setuid(64321)
    async with SandboxFactory(spawner, limits, max_running_programs=4) as factory:
        innocent = await factory.open()
        tasks = [(task / "children").read_text() for task in Path("/proc/self/task").iterdir()]
        [launcher] = [int(child) for each in tasks for child in each.split()]
        soft, hard = resource.prlimit(launcher, resource.RLIMIT_NPROC)
        resource.prlimit(launcher, resource.RLIMIT_NPROC, (1, hard))  # as if others had used up all that are allowed
        for _ in range(3):
            try:
                await factory.open()
            except IsolationError as error:
                print(error)
        print((await innocent.bash("echo unharmed", timeout_s=10)).output, end="")
        resource.prlimit(launcher, resource.RLIMIT_NPROC, (soft, hard))
        late = await factory.open()
        print((await late.bash("echo later", timeout_s=10)).output, end="")
        await asyncio.gather(innocent.close(), late.close())

asyncio.run(main())
"""


def test_a_launcher_that_may_start_no_process_fails_one_sandbox_and_no_other() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_PROCESSES], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    *failures, unharmed, later = done.stdout.splitlines()
    assert (len(failures), unharmed, later) == (3, "unharmed", "later")
    assert all("cannot start a sandbox: [Errno 11]" in each and "ulimit -u" in each for each in failures)


def refusals(spawner: Spawner, limits: Iterable[int]) -> list[str]:
    """Of one supervisor after another, each under a limit of descriptors; those that start are disposed of."""
    failures: list[str] = []
    for allowed in limits:
        try:
            with descriptors_limited_to(allowed):
                supervisor = spawner.spawn()
        except IsolationError as error:
            failures.append(str(error))
        else:
            supervisor.channel.close()
            supervisor.dispose()
    return failures


def test_a_worker_that_runs_out_of_descriptors_is_refused_one_sandbox_and_forgets_none() -> None:
    spawner = BubblewrapSpawner(LIMITS)
    spawner.launcher.start()
    launcher = own_launcher()
    held = set(os.listdir("/proc/self/fd"))
    failures = refusals(spawner, range(len(held) - 1, len(held) + 20))
    assert any("this worker cannot take over a sandbox: no more open files" in each for each in failures), failures
    assert set(os.listdir("/proc/self/fd")) == held
    wait_until(lambda: children(launcher) == [])
    spawner.close()


def test_a_launcher_that_cannot_be_started_is_an_error_of_that_call_only() -> None:
    command, contents = BubblewrapSpawner(LIMITS).command()
    failures: list[str] = []
    held = set(os.listdir("/proc/self/fd"))
    for allowed in range(len(held) - 1, len(held) + 8):
        launcher = LauncherProcess(command, contents, LIMITS, [], uses_cgroups=False)
        try:
            with descriptors_limited_to(allowed):
                launcher.start()
        except IsolationError as error:
            failures.append(str(error))
        launcher.close()
    assert any("no launcher of sandboxes can be started: [Errno 24]" in each for each in failures), failures
    assert set(os.listdir("/proc/self/fd")) == held


def test_an_unisolated_supervisor_that_cannot_be_started_leaves_nothing(tmp_path: Path) -> None:
    spawner = UnsafeLocalSpawner(LIMITS)
    held = set(os.listdir("/proc/self/fd"))
    failures = refusals(spawner, range(len(held) - 1, len(held) + 8))
    assert any("no supervisor can be started: [Errno 24]" in each for each in failures), failures
    assert set(os.listdir("/proc/self/fd")) == held
    spawner.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may choose the number of the next process")
async def test_a_process_that_got_the_number_of_a_dead_sandbox_is_not_killed() -> None:
    async with SandboxFactory(BubblewrapSpawner(LIMITS), LIMITS, max_running_programs=1) as factory:
        sandbox = await factory.open()
        [number] = children(own_launcher())
        os.kill(number, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{number}").exists())
        with program_with_number(number) as another:
            with pytest.raises(SandboxLostError):
                await sandbox.bash("true", timeout_s=10)
            assert answers(another)
            await sandbox.close()
            assert answers(another)


@pytest.mark.parametrize("spawner_type", [BubblewrapSpawner, UnsafeLocalSpawner])
def test_a_supervisor_that_is_disposed_of_can_still_be_killed_and_asked(
    spawner_type: type[BubblewrapSpawner] | type[UnsafeLocalSpawner],
) -> None:
    spawner = spawner_type(LIMITS)
    if isinstance(spawner, BubblewrapSpawner):
        spawner.launcher.start()
    held = set(os.listdir("/proc/self/fd"))
    supervisor = spawner.spawn()
    supervisor.channel.close()
    opened = {int(fd) for fd in set(os.listdir("/proc/self/fd")) - held}
    told = supervisor.facts.cpu_s()
    supervisor.dispose()
    others = os.memfd_create("others")
    os.write(others, b"usage_usec 7654 of somebody else")
    for fd in opened - {others}:
        os.dup2(others, fd)
    assert supervisor.complaint() == ""
    assert (supervisor.facts.cpu_s() is None) == (told is None)
    assert supervisor.facts.cpu_s() != 0.007654
    supervisor.kill()
    for fd in opened | {others}:
        with suppress(OSError):
            os.close(fd)
    spawner.close()


async def test_closing_sandboxes_during_their_calls_ends_these_as_lost() -> None:
    async with SandboxFactory(BubblewrapSpawner(LIMITS), LIMITS, max_running_programs=6) as factory:
        for _ in range(6):
            boxes = [await factory.open() for _ in range(6)]
            calls = [asyncio.create_task(box.bash("sleep 7657", timeout_s=60)) for box in boxes]
            await asyncio.to_thread(wait_until, lambda: len(sleepers("7657")) == 6)
            await asyncio.gather(*(box.close() for box in boxes))
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(end) for end in ends] == [SandboxLostError] * 6, ends


def own_launcher() -> int:
    return next(child for child in children(os.getpid()) if b"/proc/self/fd/" in command_line(child))


@contextmanager
def descriptors_limited_to(allowed: int) -> Generator[None]:
    """For this process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextmanager
def program_with_number(number: int) -> Generator[subprocess.Popen[bytes]]:
    """Others start processes as well, so the number is tried for again and again."""
    for _ in range(200):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(number - 1))
        with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
            try:
                if program.pid == number:
                    yield program
                    return
            finally:
                program.kill()
    pytest.skip(f"the number {number} cannot be had")


def answers(program: subprocess.Popen[bytes]) -> bool:
    """Whether it still runs: one that has been killed never does again."""
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        program.stdin.write(b"there?\n")
        program.stdin.flush()
    except BrokenPipeError:
        return False
    return program.stdout.readline() == b"there?\n"


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
