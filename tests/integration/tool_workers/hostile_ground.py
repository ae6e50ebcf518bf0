"""What hostile code meets: words for it, things of the host to reach, and sandboxes that lack a layer."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from rollstream.tool_workers.sandbox.sandbox import SandboxFactory, SupervisedSandbox
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner, Spawner
from rollstream.tool_workers.settings import SandboxSettings

PRELUDE = """
import contextlib, ctypes, errno, fcntl, glob, mmap, os, resource, signal, socket, struct, subprocess, sys
import tempfile, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *given):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in given])
    return result, errno.errorcode.get(ctypes.get_errno(), "0")
def say(got_out):
    print("OUT" if got_out else "HELD", flush=True)
def works(action):
    try:
        result = action()
    except (OSError, MemoryError, ValueError, RuntimeError, subprocess.SubprocessError):
        return False
    return result is None or bool(result)
def struct_of(*longs):
    return (ctypes.c_ulong * len(longs))(*longs)
"""
"""Before every payload: ``call`` makes a system call and tells the error, ``say`` is the verdict."""


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
        hidden = {"hidden files": ("/proc/cmdline",), "key files": ("/proc/keys", "/proc/key-users")}
        for path in hidden.get(self._without, ()):
            place = line.index(path)
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
            "key": f"key-{self.word[:12]}",
            "folder": str(self.folder),
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


async def said_by_script(script: str, facts: Mapping[str, object]) -> Any:
    """What a script that takes ``facts`` from its command line prints as JSON; it gives up root, so it runs apart."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, json.dumps(facts)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@asynccontextmanager
async def opened(spawner: Spawner, limits: SandboxSettings) -> AsyncGenerator[SupervisedSandbox]:
    """One sandbox of a factory of its own."""
    async with SandboxFactory(spawner, limits, max_running_programs=2) as factory:
        sandbox = await factory.open()
        try:
            yield sandbox
        finally:
            await sandbox.close()
