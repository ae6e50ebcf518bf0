"""Hostile payloads against sandboxes, as root and as a plain user; each with a check, and a control that fails it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rollstream.tool_workers.sandbox.replies import Execution, SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory, SupervisedSandbox
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner, Spawner, UnsafeLocalSpawner
from rollstream.tool_workers.settings import MIB, SandboxSettings

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are those of x86-64"),
]

LIMITS = SandboxSettings(memory_bytes=256 * MIB)
TABLES = Path(__file__).with_name("hostile_payloads.py")


def load_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hostile_payloads", TABLES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hostile_payloads"] = module
    spec.loader.exec_module(module)
    return module


PAYLOADS: Any = load_tables()


class WeakenedSpawner(BubblewrapSpawner):
    """A sandbox that lacks one layer: what a control needs."""

    def __init__(self, limits: SandboxSettings, without: str) -> None:
        super().__init__(limits)
        self._without = without

    def command(self) -> tuple[list[str], list[bytes]]:
        line, contents = super().command()
        if "filter" in self._without:
            place = line.index("--seccomp")
            del line[place : place + 2]
            line[-1] = json.dumps(json.loads(line[-1]) | {"filter_path": ""})
        if "namespaces" in self._without:
            line.remove("--disable-userns")
        if self._without == "network":
            place = line.index("--unshare-all")
            line[place : place + 1] = ["--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]
        if self._without == "read-only root":
            for folder in ("/dev", "/"):
                place = line.index(folder, line.index("--remount-ro"))
                del line[place - 1 : place + 1]
        if self._without == "hidden folders":
            place = line.index("/proc/sys")
            del line[place - 3 : place + 3]
        if self._without == "hidden files":
            place = line.index("/proc/cmdline")
            del line[place - 4 : place + 1]
        return line, contents


class Outside:
    """Things of the host that an escape would reach, and eyes on them."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        self.word = uuid.uuid4().hex
        self.folder = folder
        self.canary = folder / "canary"
        for path in (self.canary, folder / "canary.copy", Path("/tmp") / self.word, Path("/dev/shm") / self.word):
            path.write_text(self.word)
            path.chmod(0o644)
        self.victim = subprocess.Popen(["/bin/sleep", "600"], env={"CANARY": self.word})
        self.listeners = [socket.create_server(("127.0.0.1", 0))]
        self.listeners.append(socket.create_server(("::1", 0), family=socket.AF_INET6))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        for address in (f"\0{self.word}", str(folder / "socket")):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(address)
            listener.listen()
            self.listeners.append(listener)
        (folder / "socket").chmod(0o777)
        self.heard: list[str] = []
        self._threads = [threading.Thread(target=self._listen, args=(each,), daemon=True) for each in self.listeners]
        self._threads.append(threading.Thread(target=self._answer, daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def facts(self) -> Mapping[str, object]:
        return {
            "word": self.word,
            "canary": str(self.canary),
            "canary_folder": str(self.folder),
            "victim": self.victim.pid,
            "port": self.listeners[0].getsockname()[1],
            "port6": self.listeners[1].getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "socket_file": str(self.folder / "socket"),
            "hostname": socket.gethostname(),
        }

    def is_untouched(self) -> bool:
        """The host's own view."""
        names = {path.name for path in self.folder.iterdir()}
        return (
            self.canary.read_text() == self.word
            and self.canary.stat().st_mode & 0o777 == 0o644
            and names == {"canary", "canary.copy", "socket"}
            and self.victim.poll() is None
            and not self.heard
        )

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        for listener in (*self.listeners, self.udp):
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for thread in self._threads:
            thread.join(5)
        for path in (Path("/tmp") / self.word, Path("/dev/shm") / self.word):
            path.unlink(missing_ok=True)

    def _listen(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self.heard.append(str(listener.getsockname()))
                connection.close()

    def _answer(self) -> None:
        with suppress(OSError):
            while True:
                _, sender = self.udp.recvfrom(100)
                if sender is None:
                    return
                self.heard.append("datagram")
                self.udp.sendto(b"heard", sender)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    outside = Outside(tmp_path)
    yield outside
    outside.close()


@asynccontextmanager
async def opened(spawner: Spawner) -> AsyncGenerator[SupervisedSandbox]:
    async with SandboxFactory(spawner, LIMITS, max_running_programs=1) as factory:
        sandbox = await factory.open()
        try:
            yield sandbox
        finally:
            await sandbox.close()


def program(name: str, facts: Mapping[str, object]) -> str:
    return PAYLOADS.PRELUDE + PAYLOADS.ATTEMPTS[name].code.format(**facts)


async def attempt(sandbox: SupervisedSandbox, name: str, facts: Mapping[str, object]) -> str:
    return (await sandbox.python(program(name, facts), timeout_s=10)).output


async def refused(sandbox: SupervisedSandbox, arguments: str) -> tuple[str, Execution]:
    """The error a system call ends with, and what was counted."""
    execution = await sandbox.python(PAYLOADS.PRELUDE + f"print(call({arguments})[1])", timeout_s=10)
    return execution.output.strip(), execution


async def test_every_attempt_is_held(outside: Outside) -> None:
    """In one sandbox after another attempt: none may help the next."""
    async with opened(BubblewrapSpawner(LIMITS)) as sandbox:
        said = {name: await attempt(sandbox, name, outside.facts) for name in PAYLOADS.ATTEMPTS}
        assert (await sandbox.bash("echo alive", timeout_s=10)).output == "alive\n"
    assert {name: output for name, output in said.items() if output != "HELD\n"} == {}
    assert outside.is_untouched()


WEAK = {name: each.weakness for name, each in PAYLOADS.ATTEMPTS.items() if each.weakness not in (None, "local")}


@pytest.mark.parametrize("name", WEAK)
async def test_an_attempt_succeeds_where_its_layer_is_missing(name: str, outside: Outside) -> None:
    async with opened(WeakenedSpawner(LIMITS, WEAK[name])) as sandbox:
        with suppress(SandboxLostError):  # which shows it just as well
            assert await attempt(sandbox, name, outside.facts) == "OUT\n"


async def test_attempts_succeed_without_a_sandbox(outside: Outside) -> None:
    """Nothing here does harm: all of it is about canaries."""
    names = [name for name, each in PAYLOADS.ATTEMPTS.items() if each.weakness == "local"]
    async with opened(UnsafeLocalSpawner(LIMITS)) as sandbox:
        said = {name: await attempt(sandbox, name, outside.facts) for name in names}
    assert {name: output for name, output in said.items() if output != "OUT\n"} == {}
    assert not outside.is_untouched()


async def test_every_forbidden_call_is_refused_and_counted() -> None:
    wrong: dict[str, object] = {}
    async with opened(BubblewrapSpawner(LIMITS)) as sandbox:
        for name, arguments in PAYLOADS.FORBIDDEN_CALLS.items():
            error, execution = await refused(sandbox, arguments)
            if error != "EPERM" or execution.denied != {name: 1}:
                wrong[name] = (error, execution.denied, execution.output)
        for family, arguments in PAYLOADS.SOCKETS.items():
            error, execution = await refused(sandbox, arguments)
            if error != "EPERM" or execution.denied != {"socket": 1}:
                wrong[f"socket {family}"] = (error, execution.denied)
        for name, arguments in PAYLOADS.ABSENT_CALLS.items():
            error, _ = await refused(sandbox, arguments)
            if error != "ENOSYS":
                wrong[name] = error
    assert wrong == {}


async def test_without_the_filter_calls_are_not_counted_and_many_are_not_refused() -> None:
    reached = 0
    async with opened(WeakenedSpawner(LIMITS, "filter")) as sandbox:
        for name in ("keyctl", "userfaultfd", "io_uring_setup", "kcmp", "name_to_handle_at", "mbind", "socket"):
            error, execution = await refused(sandbox, PAYLOADS.FORBIDDEN_CALLS[name])
            assert execution.denied == {}
            reached += error not in ("EPERM", "ENOSYS")
        for name in ("memfd_create", "shmget", "msgget", "semget", "personality"):
            error, _ = await refused(sandbox, PAYLOADS.ABSENT_CALLS[name])
            assert error == "0", name
    assert reached >= 4


AS_NOBODY = """
import asyncio, encodings.idna, json, multiprocessing.util, os, signal, stat, sys, tempfile
sys.path.insert(0, {folder!r})
facts = json.loads(sys.argv[1])
import hostile_payloads as payloads
from rollstream.tool_workers.sandbox.archives import compiled_archive, launcher_archive
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner
from rollstream.tool_workers.settings import SandboxSettings

async def main():
    limits = SandboxSettings()
    spawner = BubblewrapSpawner(limits)
    compiled_archive(spawner.interpreter.path); launcher_archive()
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    said = {{}}
    async with SandboxFactory(spawner, limits, max_running_programs=1) as factory:
        sandbox = await factory.open()
        for name, each in payloads.ATTEMPTS.items():
            said[name] = (await sandbox.python(payloads.PRELUDE + each.code.format(**facts), timeout_s=10)).output
        for name, arguments in payloads.FORBIDDEN_CALLS.items():
            done = await sandbox.python(payloads.PRELUDE + f"print(call({{arguments}})[1])", timeout_s=10)
            said[name] = "HELD\\n" if done.output == "EPERM\\n" and done.denied == {{name: 1}} else done.output
        await sandbox.close()
    print(json.dumps(said))

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs as a plain user already")
async def test_a_plain_user_holds_all_of_it_too(outside: Outside) -> None:
    script = AS_NOBODY.format(folder=str(TABLES.parent))
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, json.dumps(outside.facts)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said) == len(PAYLOADS.ATTEMPTS) + len(PAYLOADS.FORBIDDEN_CALLS)
    assert {name: output for name, output in said.items() if output != "HELD\n"} == {}
    assert outside.is_untouched()
