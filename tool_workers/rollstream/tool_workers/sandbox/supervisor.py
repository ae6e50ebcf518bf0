"""PID 1 of a sandbox: runs one program at a time on request and leaves no process behind.

Runs inside the sandbox on any Python from 3.9, standard library only; its source is handed in by the worker. It shares
the uid of the code it starts, so it is not dumpable (no ptrace, no access to its memory or descriptors) and, as PID 1,
deaf to signals of its own namespace. The worker treats every byte it says as untrusted.

Frames both ways: four bytes big-endian length, then a JSON object.
Request: ``{"argv": [...]}`` or ``{"python": "source"}``, with ``timeout_s``. Reply: see ``sandbox/replies.py``.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import itertools
import json
import linecache
import math
import os
import random
import re
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn, TextIO

WARM_MODULES = (collections, itertools, math, random, re)
"""Imported once, so that every Python call starts with them."""

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
WATCH_INTERVAL_S = 0.1
PAGE_BYTES = resource.getpagesize()
SOURCE_NAME = "<python>"

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """Set a property of this process; OSError if the kernel refuses."""
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


class Supervisor:
    """Serves requests until the worker's end of the socket is closed."""

    def __init__(self, channel: socket.socket, limits: dict[str, Any]) -> None:
        self._channel = channel
        self._limits = limits
        self._workspace: str = limits["workspace"]
        self._is_namespace_init = os.getpid() == 1

    def serve(self) -> None:
        """Answer requests one after another."""
        self._send({"ready": True, "is_namespace_init": self._is_namespace_init})
        while True:
            request = self._receive()
            self._send(self._run(request))

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        output_fd, output_end = os.pipe()
        failure_fd, failure_end = os.pipe()
        timeout_s = float(request["timeout_s"])
        pid = os.fork()
        if pid == 0:
            os.close(output_fd)
            os.close(failure_fd)
            self._become(request, output_end, failure_end, timeout_s)
        os.close(output_end)
        os.close(failure_end)
        output = Output(int(self._limits["output_bytes"]))
        cause = self._watch(pid, output_fd, output, started + timeout_s)
        exit_code = self._kill_everything(pid)
        os.close(output_fd)
        os.set_blocking(failure_fd, False)
        with contextlib.suppress(BlockingIOError):
            if failure := os.read(failure_fd, 2000):
                cause, output.tail = "failed_to_start", bytearray(failure)
        os.close(failure_fd)
        return {
            "exit_code": exit_code,
            "cause": cause,
            "head": output.head.decode("utf-8", "backslashreplace"),
            "tail": output.tail.decode("utf-8", "backslashreplace"),
            "total_bytes": output.total_bytes,
            "run_s": time.monotonic() - started,
        }

    def _watch(self, pid: int, output_fd: int, output: Output, deadline: float) -> str | None:
        """Gather output until the program ends; the reason if it has to be killed."""
        os.set_blocking(output_fd, False)
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(output_fd, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        next_look = time.monotonic() + WATCH_INTERVAL_S
        try:
            while True:
                now = time.monotonic()
                if now >= deadline:
                    return "timeout"
                if now >= next_look:
                    next_look = now + WATCH_INTERVAL_S
                    if self._memory_bytes() > self._limits["memory_bytes"]:
                        return "memory"
                has_ended = False
                for fd, _ in poll.poll(1000 * (min(deadline, next_look) - now) + 1):
                    if fd == pidfd:
                        has_ended = True
                    elif not output.read(output_fd):
                        poll.unregister(output_fd)
                if has_ended:
                    output.drain(output_fd, int(self._limits["flood_bytes"]))
                if output.total_bytes > self._limits["flood_bytes"]:
                    return "output"
                if has_ended:
                    return None
        finally:
            os.close(pidfd)

    def _memory_bytes(self) -> int:
        """Memory of all programs and of files in memory; exact only if the cheap upper bound is over the limit."""
        if not self._is_namespace_init:
            return sum(resident_bytes(pid) for pid in descendants(os.getpid()))
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal() and name != "1"]
        files = sum(used_bytes(path) for path in self._limits["memory_folders"])
        total = files + sum(resident_bytes(pid) for pid in pids)
        if total > self._limits["memory_bytes"]:
            total = files + sum(proportional_bytes(pid) for pid in pids)
        return total

    def _kill_everything(self, pid: int) -> int | None:
        """Kill and reap until no process but this one is left; the exit code of ``pid``."""
        exit_code = None
        for _ in range(2000):
            with contextlib.suppress(ChildProcessError):
                while True:
                    reaped, status = os.waitpid(-1, os.WNOHANG)
                    if reaped == 0:
                        break
                    if reaped == pid:
                        exit_code = os.waitstatus_to_exitcode(status)
            if not self._kill_once():
                return exit_code
            time.sleep(0.0005)
        os._exit(70)  # a sandbox that cannot be emptied is not used again

    def _kill_once(self) -> bool:
        if self._is_namespace_init:
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                return False
            return True
        found = descendants(os.getpid())
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(found)

    def _become(self, request: dict[str, Any], output_end: int, failure_end: int, timeout_s: float) -> NoReturn:
        """In the child: turn into the program; what fails before it starts goes to ``failure_end``."""
        try:
            os.setsid()
            prctl(PR_SET_DUMPABLE, 1)
            self._channel.close()
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (output_end, 1), (output_end, 2)):
                os.dup2(source, target)
            os.dup2(failure_end, 3, inheritable=False)
            os.closerange(4, 4096)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.chdir(self._workspace)
            self._set_limits(timeout_s)
            if "argv" in request:
                os.execv(request["argv"][0], request["argv"])
            os.close(3)
        except BaseException as error:
            os.write(3, f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace")[:1000])
            os._exit(71)
        run_python(request["python"], self._workspace)

    def _set_limits(self, timeout_s: float) -> None:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        cpu_s = math.ceil(timeout_s) + 1
        for kind, value in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_MEMLOCK, 65536),
            (resource.RLIMIT_MSGQUEUE, 0),
            (resource.RLIMIT_CPU, cpu_s),
            (resource.RLIMIT_AS, self._limits["address_space_bytes"]),
            (resource.RLIMIT_FSIZE, self._limits["file_bytes"]),
            (resource.RLIMIT_NOFILE, self._limits["open_files"]),
            (resource.RLIMIT_NPROC, self._limits["processes"]),
        ):
            _, hard = resource.getrlimit(kind)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))

    def _send(self, reply: dict[str, Any]) -> None:
        body = json.dumps(reply).encode()
        self._channel.sendall(len(body).to_bytes(4, "big") + body)

    def _receive(self) -> dict[str, Any]:
        return json.loads(self._receive_bytes(int.from_bytes(self._receive_bytes(4), "big")))

    def _receive_bytes(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            chunk = self._channel.recv(size - len(received))
            if not chunk:
                os._exit(0)
            received += chunk
        return bytes(received)


class Output:
    """The first and the last bytes of a stream of any length."""

    def __init__(self, kept_bytes: int) -> None:
        self._half = kept_bytes // 2
        self.head = bytearray()
        self.tail = bytearray()
        self.total_bytes = 0

    def read(self, fd: int) -> bool:
        """Take what is there; False at the end of the stream."""
        try:
            chunk = os.read(fd, 65536)
        except BlockingIOError:
            return True
        self.total_bytes += len(chunk)
        room = self._half - len(self.head)
        self.head += chunk[:room]
        self.tail += chunk[room:]
        del self.tail[: -self._half]
        return bool(chunk)

    def drain(self, fd: int, at_most: int) -> None:
        """Take what is left without waiting for more."""
        before = -1
        while before < self.total_bytes <= at_most:
            before = self.total_bytes
            self.read(fd)


def run_python(source: str, workspace: str) -> NoReturn:
    """Run source text as ``__main__`` in this process and end it."""
    sys.stdout, sys.stderr = text_stream(1), text_stream(2)
    sys.argv = [SOURCE_NAME]
    sys.path.insert(0, workspace)
    random.seed()
    linecache.cache[SOURCE_NAME] = (len(source), None, source.splitlines(True), SOURCE_NAME)
    main = type(sys)("__main__")
    sys.modules["__main__"] = main
    exit_code = 0
    try:
        exec(compile(source, SOURCE_NAME, "exec"), main.__dict__)
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            sys.stderr.write(stop.code + "\n")
        exit_code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        shown = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(type(error), error, shown)
        exit_code = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code & 0xFF)


def text_stream(fd: int) -> TextIO:
    """A stream that loses no line when the process is killed, and takes any text."""
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def resident_bytes(pid: int) -> int:
    """Resident memory, shared pages included; readable for every process."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * PAGE_BYTES
    return 0


def proportional_bytes(pid: int) -> int:
    """Resident memory with shared pages divided among those who share them."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return resident_bytes(pid)


def used_bytes(folder: str) -> int:
    """Bytes used in the file system of a folder."""
    facts = os.statvfs(folder)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def descendants(pid: int) -> list[int]:
    """All living processes below ``pid``."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                for child in map(int, file.read().split()):
                    found += [child, *descendants(child)]
    return found


def main() -> None:
    """Take the socket's descriptor and the limits from the command line."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    Supervisor(channel, json.loads(sys.argv[2])).serve()


if __name__ == "__main__":
    main()
