"""Ways out of a sandbox. Each is also tried without one, where it must succeed: else it proves nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory, SupervisedSandbox
from rollstream.tool_workers.settings import SandboxSettings

pytestmark = pytest.mark.sandbox

PRELUDE = """
import ctypes, errno, glob, os, socket
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")
def environments():
    found = ""
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            found += open(path, errors="replace").read()
        except OSError:
            pass
    return found
"""
# System call numbers of x86-64.
ADD_KEY, MEMFD_CREATE, PTRACE, UNSHARE = 248, 319, 101, 272

ESCAPES = {
    "read a file of the host": "open({canary_file!r}).read()",
    "write a file of the host": "open({canary_folder!r} + '/written', 'w').close()",
    "read the environment of another process": "if {word!r} not in environments(): raise OSError('not found')",
    "see a process of the host": "os.stat('/proc/{victim}')",
    "signal a process of the host": "os.kill({victim}, 0)",
    "connect to the loopback of the host": "socket.create_connection(('127.0.0.1', {port}), 2)",
    "connect to an abstract socket of the host": ("socket.socket(socket.AF_UNIX).connect(chr(0) + {abstract!r})"),
    "open a netlink socket": "socket.socket(16, socket.SOCK_RAW)",
    "open a user namespace": f"call({UNSHARE}, 0x10000000)",
    "be traced": f"call({PTRACE}, 0, 0, 0, 0)",
    "store a key": f"call({ADD_KEY}, b'user', b'rollstream-test', b'x', 1, -2)",
    "take memory that is in no process": f"call({MEMFD_CREATE}, b'x', 0)",
    "change limits of the supervisor": (
        "import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))"
    ),
    "know the name of the host": "if socket.gethostname() != {hostname!r}: raise OSError('another name')",
}


class Outside:
    """Things of the host that an escape would reach."""

    def __init__(self, folder: Path) -> None:
        self.word = uuid.uuid4().hex
        self.folder = folder
        self.file = folder / "canary"
        self.file.write_text(self.word)
        self.file.chmod(0o644)
        self.victim = subprocess.Popen(["/bin/sleep", "600"], env={"CANARY": self.word})
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0{self.word}")
        self.abstract.listen()

    def code(self, template: str) -> str:
        """A program that tries a way out and says whether it worked."""
        attempt = template.format(
            canary_file=str(self.file),
            canary_folder=str(self.folder),
            word=self.word,
            victim=self.victim.pid,
            port=self.listener.getsockname()[1],
            abstract=self.word,
            hostname=socket.gethostname(),
        )
        indented = "\n".join(f"    {line}" for line in attempt.splitlines())
        return f"{PRELUDE}\ntry:\n{indented}\n    print('OUT')\nexcept (OSError, PermissionError): print('HELD')\n"

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        self.listener.close()
        self.abstract.close()


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    tmp_path.chmod(0o755)
    outside = Outside(tmp_path)
    yield outside
    outside.close()


@pytest_asyncio.fixture(params=["bwrap", "unsafe-local"])
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, SupervisedSandbox]]:
    limits = SandboxSettings()
    async with SandboxFactory(build_spawner(request.param, limits), limits, max_running_programs=1) as factory:
        opened = await factory.open()
        yield request.param, opened
        await opened.close()


@pytest.mark.parametrize("name", ESCAPES)
async def test_a_way_out_works_only_without_a_sandbox(
    name: str, outside: Outside, sandbox: tuple[str, SupervisedSandbox]
) -> None:
    isolation, opened = sandbox
    if isolation == "unsafe-local" and os.geteuid() != 0 and name in ("open a user namespace",):
        pytest.skip("whether a plain user may do this depends on the machine")
    execution = await opened.python(outside.code(ESCAPES[name]), timeout_s=10)
    assert execution.output.strip() == ("HELD" if isolation == "bwrap" else "OUT"), execution.output


async def test_a_sandbox_shows_its_own_world_only(outside: Outside, sandbox: tuple[str, SupervisedSandbox]) -> None:
    isolation, opened = sandbox
    if isolation != "bwrap":
        pytest.skip("the controls are above")
    root = await opened.bash("ls /", timeout_s=10)
    known = {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "tmp", "usr", "workspace"}
    assert set(root.output.split()) <= known
    numbers = await opened.bash("ls /proc | grep -c '^[0-9]'; id -u; grep CapEff /proc/self/status", timeout_s=10)
    processes, uid, _, capabilities = numbers.output.split()
    assert (int(processes) <= 5, uid, int(capabilities, 16)) == (True, "1000", 0)
    descriptors = await opened.python("import os; print(len(os.listdir('/proc/self/fd')))", timeout_s=10)
    assert descriptors.output == "4\n"  # three streams, and the folder that is looked at


def test_a_killed_worker_takes_its_sandboxes_along() -> None:
    marker = f"6{uuid.uuid4().int % 10**8:08d}"
    script = f"""
import asyncio
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.settings import SandboxSettings
async def main():
    limits = SandboxSettings()
    async with SandboxFactory(build_spawner("bwrap", limits), limits, max_running_programs=1) as factory:
        sandbox = await factory.open()
        print(flush=True)
        await sandbox.bash("trap '' TERM; setsid nohup sleep {marker} & sleep {marker}", timeout_s=60)
asyncio.run(main())
"""
    worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    worker.stdout.readline()
    wait_until(lambda: len(sleeping(marker)) == 2)
    worker.kill()
    worker.wait()
    worker.stdout.close()
    wait_until(lambda: not sleeping(marker))


def wait_until(holds: Callable[[], bool]) -> None:
    """Look until it holds, for ten seconds at most: nobody is told about processes that are not children."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def sleeping(marker: str) -> list[str]:
    """Processes of the host that run ``sleep marker``, wherever they are."""
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", marker.encode()]:
            found.append(folder.name)
    return found
