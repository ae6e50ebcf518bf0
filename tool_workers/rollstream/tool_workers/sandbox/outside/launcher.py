"""Starts and ends the sandboxes of one worker.

Duty: the worker holds credentials, this process holds none: an empty environment, its own session keyring, no
descriptors but its socket. Sandboxes are its children and die with it; when the worker's end of the socket closes, it
ends them all, removes their control groups, and leaves. What a sandbox leaves dead is its to bury, so that a worker may
be process 1 of a container.

Requests are JSON with a length before them, answered in order. ``{"spawn": true}`` is answered with the sandbox's
number and with descriptors: its channel, what it complained, its process, and the files that tell about its control
group; or with an ``error``. A sandbox that cannot be had costs no other one: whatever the machine runs out of is an
answer, never this program's end.
"""

from __future__ import annotations

import array
import base64
import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rollstream.tool_workers.sandbox.outside.cgroups import Cgroups, Group, GroupLimits, find_mounts, group_name
from rollstream.tool_workers.sandbox.outside.scarcity import explain_scarcity

CHANNEL_FD = 10
FIRST_CONTENT_FD = 11
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}
JOIN_SESSION_KEYRING = 1
PR_SET_CHILD_SUBREAPER = 36
MEMORY_OF_THE_SUPERVISOR_BYTES = 48 * 1024 * 1024
PROCESSES_OF_THE_SUPERVISOR = 8
REMOVE_INTERVAL_MS = 5
LEAVE_ROUNDS = 400
COULD_NOT_ENTER = 73


@dataclass(frozen=True)
class Recipe:
    """How a sandbox is started.

    Attributes:
        command: bwrap and its arguments; its channel is descriptor 10, ``contents`` are those from 11 on.
        uids: as root, the user ids that sandboxes have in turn; empty: our own.
    """

    command: list[str]
    contents: list[bytes]
    uids: list[int]
    group_limits: GroupLimits
    uses_cgroups: bool

    @classmethod
    def parse(cls, given: dict[str, Any]) -> Recipe:
        """From the worker's first message."""
        return cls(
            given["command"],
            [base64.b64decode(each) for each in given["contents"]],
            given["uids"],
            GroupLimits(
                given["memory_bytes"] + MEMORY_OF_THE_SUPERVISOR_BYTES,
                given["processes"] + PROCESSES_OF_THE_SUPERVISOR,
                given["cpus"],
            ),
            given["uses_cgroups"],
        )


@dataclass
class Child:
    """A sandbox.

    Attributes:
        pid: of its bwrap; None: there is none. It is set to None by whoever waits for it: until then the number stays
            its own, afterwards it may be another's.
        group: None: it has none.
    """

    pid: int | None = None
    group: Group | None = None

    def kill(self) -> bool:
        """Kill everything in it; whether its bwrap is there and could be."""
        if self.group is not None:
            self.group.kill()
        if self.pid is None:
            return False
        try:
            os.kill(self.pid, signal.SIGKILL)
        except OSError:  # root without the right to signal other users
            return False
        return True


class Launcher:
    """Serves one worker."""

    def __init__(self, control: socket.socket, recipe: Recipe, worker_pid: int) -> None:
        self._control = control
        self._recipe = recipe
        self._children: dict[int, Child] = {}
        self._leaving: list[Group] = []
        self._number = 0
        self._deaths = _deaths()
        mounts = find_mounts(Path("/proc/mounts").read_text(), Path("/proc/self/cgroup").read_text())
        self._cgroups: Cgroups | None = None
        if recipe.uses_cgroups:
            self._cgroups = Cgroups(mounts, group_name(os.getpid()), (worker_pid, os.getpid()), recipe.group_limits)

    def serve(self) -> None:
        """Until the worker is gone."""
        kind, reason = ("none", "switched off") if self._cgroups is None else (self._cgroups.kind, self._cgroups.reason)
        self._answer({"cgroups": kind, "reason": reason})
        try:
            self._answer_requests()
        finally:
            self._leave()

    def _answer_requests(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._deaths, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll(REMOVE_INTERVAL_MS if self._leaving else None)]
            self._remove_groups()
            if self._deaths.fileno() in ready:
                self._bury()
            if self._control.fileno() not in ready:
                continue
            request = receive(self._control)
            if request is None:
                return
            if "spawn" in request:
                self._spawn()
            else:
                self._end(request["end"])
                self._answer({})

    def _spawn(self) -> None:
        self._number += 1
        child = Child()
        try:
            with contextlib.ExitStack() as held:
                self._start(self._number, child, held)
        except OSError as error:
            self._destroy(child)
            self._answer({"error": explain_scarcity(error)})
        else:
            self._children[self._number] = child

    def _start(self, number: int, child: Child, held: contextlib.ExitStack) -> None:
        """Start a sandbox and hand it to the worker.

        Raises:
            OSError: that has failed; ``child`` says what is there to be ended.
        """
        group = child.group = self._cgroups.create(number) if self._cgroups is not None else None
        ours, theirs = (held.enter_context(end) for end in socket.socketpair())
        complaints_fd = _held(os.memfd_create("complaints"), held)
        contents = [_readable(content, held) for content in self._recipe.contents]
        facts = [group.oom_file, group.cpu_file] if group is not None else []
        fact_fds = {each.name: _held(os.open(each, os.O_RDONLY), held) for each in facts if each is not None}
        child.pid = os.fork()
        if child.pid == 0:
            self._become(group, number, theirs.fileno(), complaints_fd, contents)
        process_fd = _held(os.pidfd_open(child.pid), held)
        self._send(
            {"number": number, "facts": list(fact_fds)},
            [ours.fileno(), complaints_fd, process_fd, *fact_fds.values()],
        )

    def _become(
        self, group: Group | None, number: int, channel_fd: int, complaints_fd: int, contents: list[int]
    ) -> NoReturn:
        """In the child: enter the group, give up every right, and turn into bwrap."""
        try:
            if group is not None:
                group.enter()
            above = FIRST_CONTENT_FD + len(contents)
            complaints_fd, *moved = [_moved_above(fd, above) for fd in (complaints_fd, channel_fd, *contents)]
            for target, source in enumerate(moved, CHANNEL_FD):
                os.dup2(source, target)
            nothing = os.open(os.devnull, os.O_RDWR)
            for target, source in ((0, nothing), (1, nothing), (2, complaints_fd)):
                os.dup2(source, target)
            os.setsid()
            if self._recipe.uids:
                uid = self._recipe.uids[number % len(self._recipe.uids)]
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            for kind in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM):
                signal.signal(kind, signal.SIG_DFL)
            os.execve(self._recipe.command[0], self._recipe.command, {})
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(complaints_fd, f"cannot start a sandbox: {error!r}".encode(errors="replace"))
        finally:
            os._exit(COULD_NOT_ENTER)

    def _end(self, number: int) -> None:
        """Kill a sandbox and everything in it; the rest of its group goes when its processes have."""
        child = self._children.pop(number, None)
        if child is not None:
            self._destroy(child)

    def _destroy(self, child: Child) -> None:
        if child.kill() and child.pid is not None:
            os.waitpid(child.pid, 0)
            child.pid = None
        if child.group is not None and not child.group.is_removed():
            self._leaving.append(child.group)

    def _bury(self) -> bool:
        """Take notice of who has died, sandboxes and processes that they have orphaned; whether nobody lives."""
        with contextlib.suppress(BlockingIOError):
            while self._deaths.recv(4096):
                pass
        try:
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                for child in self._children.values():
                    if child.pid == pid:
                        child.pid = None
        except ChildProcessError:
            return True
        return False

    def _remove_groups(self) -> None:
        self._leaving = [group for group in self._leaving if not group.is_removed()]

    def _leave(self) -> None:
        for child in self._children.values():  # all at once, before any is waited for
            child.kill()
        for number in list(self._children):
            self._end(number)
        for _ in range(LEAVE_ROUNDS):
            self._remove_groups()
            if self._bury() and not self._leaving:
                break
            select.select([], [], [], REMOVE_INTERVAL_MS / 1000)
        if self._cgroups is not None:
            self._cgroups.close()

    def _answer(self, answer: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the worker is gone; the next read says so
            self._send(answer, [])

    def _send(self, answer: dict[str, Any], fds: list[int]) -> None:
        body = json.dumps(answer).encode()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._control.sendmsg([len(body).to_bytes(4, "big") + body], ancillary)


def _deaths() -> socket.socket:
    """Readable whenever a process has died whose end is ours to notice; orphans of our children are among them."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("this kernel lets no process collect what its children leave")
    deaths, notice = socket.socketpair()
    deaths.setblocking(False)
    notice.setblocking(False)
    signal.set_wakeup_fd(notice.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _wake)
    return deaths


def _wake(_number: int, _frame: FrameType | None) -> None:
    """Having a handler is what makes Python tell of a signal."""


def receive(control: socket.socket) -> dict[str, Any] | None:
    """The worker's next message; None: it is gone."""
    header = _exactly(control, 4)
    body = _exactly(control, int.from_bytes(header, "big")) if header is not None else None
    return None if body is None else json.loads(body)


def _exactly(control: socket.socket, size: int) -> bytes | None:
    received = bytearray()
    while len(received) < size:
        try:
            chunk = control.recv(size - len(received))
        except OSError:
            return None
        if not chunk:
            return None
        received += chunk
    return bytes(received)


def _held(fd: int, held: contextlib.ExitStack) -> int:
    held.callback(os.close, fd)
    return fd


def _readable(content: bytes, held: contextlib.ExitStack) -> int:
    fd = _held(os.memfd_create("content"), held)
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _moved_above(fd: int, lowest: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)


def join_own_keyring() -> None:
    """What the worker's session keyring holds is not for sandboxes."""
    number = SYS_KEYCTL.get(os.uname().machine)
    if number is not None:
        ctypes.CDLL(None).syscall(number, JOIN_SESSION_KEYRING, None)


def main() -> None:
    """Take the socket, the worker's process number and the descriptor of this program from the command line.

    The recipe comes over the socket.
    """
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, signal.SIG_IGN)  # the worker says when it is over, also on Ctrl-C
    join_own_keyring()
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    os.close(int(sys.argv[3]))
    first = receive(control)
    if first is not None:
        Launcher(control, Recipe.parse(first), int(sys.argv[2])).serve()
