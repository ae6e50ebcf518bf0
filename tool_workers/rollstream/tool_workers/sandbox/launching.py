"""The worker's end of its launcher: asks for sandboxes and for their end. Blocking; one request at a time."""

from __future__ import annotations

import array
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.archives import launcher_archive
from rollstream.tool_workers.sandbox.descriptors import KeptFile, ProcessHandle
from rollstream.tool_workers.sandbox.outside.scarcity import DESCRIPTORS, explain_scarcity
from rollstream.tool_workers.settings import SandboxSettings

SYSTEM_PYTHON = "/usr/bin/python3"
ANSWER_TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 65536
MAX_DESCRIPTORS = 8
MAX_COMPLAINT_BYTES = 4000
MAX_FACT_BYTES = 4096
OWN_DESCRIPTORS = 3
"""Of a sandbox, before those of its control group."""
OOM_KILLS = re.compile(rb"^oom_kill (\d+)", re.MULTILINE)
CPU_USAGE = re.compile(rb"^usage_usec (\d+)", re.MULTILINE)


@dataclass
class GroupFacts:
    """What the control group of a sandbox tells, and told last once it is gone; None where there is none."""

    files: dict[str, KeptFile] = field(default_factory=dict[str, KeptFile])

    def oom_kills(self) -> int | None:
        """Processes killed because the memory of the group was used up."""
        return self._number(("memory.events", "memory.oom_control"), OOM_KILLS)

    def cpu_s(self) -> float | None:
        """Processor time of all processes, ended ones included."""
        usage = self._number(("cpu.stat",), CPU_USAGE)
        return None if usage is None else usage / 1e6

    def close(self) -> None:
        """Give the descriptors back."""
        for file in self.files.values():
            file.close()

    def _number(self, names: tuple[str, ...], pattern: re.Pattern[bytes]) -> int | None:
        for name in names:
            if name in self.files:
                found = pattern.search(self.files[name].read())
                return int(found[1]) if found else None
        return None


@dataclass(frozen=True)
class LaunchedSandbox:
    """What the launcher hands over. ``process``: its bwrap. ``complaints``: its standard error."""

    number: int
    channel: socket.socket
    complaints: KeptFile
    process: ProcessHandle
    facts: GroupFacts


class LauncherProcess:
    """One launcher; started again when it has died, which ends all its sandboxes.

    Args:
        command: of bwrap, with descriptor 10 for the channel and 11 and following for ``contents``.
        uids: as root, what sandboxes run as, in turn.
    """

    def __init__(
        self, command: list[str], contents: list[bytes], limits: SandboxSettings, uids: list[int], *, uses_cgroups: bool
    ) -> None:
        self._recipe = {
            "command": command,
            "contents": [base64.b64encode(each).decode() for each in contents],
            "uids": uids,
            "memory_bytes": limits.memory_bytes,
            "processes": limits.processes,
            "cpus": limits.cpus,
            "uses_cgroups": uses_cgroups,
        }
        self._source = launcher_archive()
        self._complaints_fd = os.memfd_create("complaints")
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self.cgroups = "none"
        """Where memory and process limits are enforced: ``v2``, ``v1`` or ``none``."""
        self.cgroups_reason = ""
        """Why they are not."""

    def spawn(self) -> LaunchedSandbox:
        """Start a sandbox, a few milliseconds.

        Raises:
            IsolationError: the launcher cannot start it, which costs no other sandbox; or it is gone.
        """
        with self._lock:
            self._ensure_started()
            answer, fds = self._ask({"spawn": True})
            if "error" in answer:
                raise IsolationError(f"the launcher cannot start a sandbox: {answer['error']}")
            if len(fds) != OWN_DESCRIPTORS + len(answer["facts"]):
                for fd in fds:
                    os.close(fd)
                self._ask({"end": answer["number"]})
                raise IsolationError(f"this worker cannot take over a sandbox: {DESCRIPTORS}")
        channel_fd, complaints_fd, process_fd, *fact_fds = fds
        files = {name: KeptFile(fd, MAX_FACT_BYTES) for name, fd in zip(answer["facts"], fact_fds, strict=True)}
        return LaunchedSandbox(
            answer["number"],
            socket.socket(fileno=channel_fd),
            KeptFile(complaints_fd, MAX_COMPLAINT_BYTES),
            ProcessHandle(process_fd),
            GroupFacts(files),
        )

    def end(self, sandbox: LaunchedSandbox) -> None:
        """Kill it and everything inside; safe when the launcher is gone, and the sandbox with it."""
        with self._lock, suppress(IsolationError):
            if self._is_alive:
                self._ask({"end": sandbox.number})

    def start(self) -> None:
        """Start the launcher now, to know about ``cgroups``. Raises IsolationError."""
        with self._lock:
            self._ensure_started()

    def close(self) -> None:
        """End all sandboxes and the launcher; returns when they are gone."""
        with self._lock:
            if self._control is not None:
                self._control.close()
                self._control = None
            if self._process is not None:
                try:
                    self._process.wait(ANSWER_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
                self._process = None
            if self._complaints_fd >= 0:
                os.close(self._complaints_fd)
                self._complaints_fd = -1

    @property
    def _is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _ensure_started(self) -> None:
        if self._is_alive:
            return
        if self._control is not None:
            self._control.close()
            self._control = None
        try:
            self._process, self._control = self._started()
        except OSError as error:
            raise IsolationError(f"no launcher of sandboxes can be started: {explain_scarcity(error)}") from error
        answer, _ = self._ask(self._recipe)
        self.cgroups, self.cgroups_reason = answer["cgroups"], answer["reason"]

    def _started(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """The process and our end of its socket. Raises OSError."""
        interpreter = sys.executable if os.access(sys.executable, os.X_OK) else SYSTEM_PYTHON
        ours, theirs = socket.socketpair()
        ours.settimeout(ANSWER_TIMEOUT_S)
        try:
            with theirs, open(os.memfd_create("launcher"), "wb") as source:
                source.write(self._source)
                source.flush()
                arguments = (theirs.fileno(), os.getpid(), source.fileno())
                process = subprocess.Popen(
                    [interpreter, "-I", "-S", "-B", f"/proc/self/fd/{source.fileno()}", *map(str, arguments)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._complaints_fd,
                    env={},
                    cwd="/",
                    pass_fds=(theirs.fileno(), source.fileno()),
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        return process, ours

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        assert self._control is not None
        body = json.dumps(request).encode()
        try:
            self._control.sendall(len(body).to_bytes(4, "big") + body)
            return self._answer()
        except (OSError, ValueError) as error:
            self._kill()
            complaint = os.pread(self._complaints_fd, MAX_COMPLAINT_BYTES, 0).decode(errors="replace")
            raise IsolationError(
                f"the launcher of sandboxes does not answer ({error}), its sandboxes are gone; {complaint}"
            ) from error

    def _answer(self) -> tuple[dict[str, Any], list[int]]:
        assert self._control is not None
        fds = array.array("i")
        received = bytearray()
        while len(received) < 4 or len(received) < 4 + int.from_bytes(received[:4], "big"):
            chunk, ancillary, _, _ = self._control.recvmsg(
                MAX_ANSWER_BYTES, socket.CMSG_LEN(MAX_DESCRIPTORS * fds.itemsize)
            )
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            if not chunk:
                raise OSError("it has ended")
            received += chunk
        for fd in fds:
            os.set_inheritable(fd, False)
        return json.loads(received[4:]), list(fds)

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            self._process.wait()
