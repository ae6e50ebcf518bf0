"""One long-lived program whose streams are the worker's: the last thing a sandbox does.

Frames, both ways, begin with one byte: ``i`` input for the program, ``c`` close its input; ``o`` its output, ``e`` what
it wrote to standard error, ``x`` it has ended (or a limit has ended it), with the reason as JSON.
"""

from __future__ import annotations

import json
import os
import select
import time

from rollstream.tool_workers.sandbox.inside.channel import Channel
from rollstream.tool_workers.sandbox.inside.denials import Denials
from rollstream.tool_workers.sandbox.inside.processes import Started
from rollstream.tool_workers.sandbox.inside.watch import ResourceWatch

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from typing import NoReturn

CHUNK_BYTES = 65536
MAX_PENDING_BYTES = 4 * 1024 * 1024
"""Input the program has not read; beyond it the worker is not read from, and so must wait."""


class BridgeRelay:
    """Relays until the program ends; the sandbox has nothing else to do.

    A worker that does not read holds up the program, and never what watches over it.
    """

    def __init__(
        self, started: Started, error_fd: int, channel: Channel, denials: Denials, resources: ResourceWatch
    ) -> None:
        self._started = started
        self._error_fd = error_fd
        self._channel = channel
        self._denials = denials
        self._resources = resources
        self._pending = bytearray()
        self._closes_input = False
        self._input_fd: int | None = started.input_fd
        self._streams = {started.output_fd: b"o", error_fd: b"e"}
        self._is_held_up = False
        self._cause: str | None = None

    def relay(self) -> None:
        """Return when the program is over, or has to be."""
        os.set_blocking(self._error_fd, False)
        pidfd = os.pidfd_open(self._started.pid)
        while True:
            ready = self._ready(pidfd)
            if self._denials.listener_fd in ready:
                self._denials.answer()
            self._forward_while_read([fd for fd in self._streams if fd in ready])
            if self._channel.read_fd in ready:
                self._take(self._channel.receive())
            self._feed()
            self._cause = self._resources.exceeded()
            if self._cause is not None or pidfd in ready:
                return

    def report_end(self) -> NoReturn:
        """Once nothing runs any more: its last words, the reason, and then nothing until the worker leaves.

        Whoever writes does not know of the end yet: were nobody here, it would look like the loss of the sandbox.
        """
        for fd in list(self._streams):
            while self._forward(fd):
                continue
        if self._cause is None and self._resources.has_run_out_of_memory:
            self._cause = "memory"
        self._channel.send(b"x" + json.dumps({"cause": self._cause, "denied": self._denials.take()}).encode())
        while True:
            self._channel.receive()

    def _ready(self, pidfd: int) -> set[int]:
        reads = [pidfd]
        if not self._is_held_up:
            reads += self._streams
        if len(self._pending) < MAX_PENDING_BYTES:
            reads.append(self._channel.read_fd)
        if self._denials.listener_fd is not None:
            reads.append(self._denials.listener_fd)
        writes = [self._input_fd] if self._input_fd is not None and self._pending else []
        if self._is_held_up:
            writes.append(self._channel.write_fd)
        wait_s = max(0.0, self._resources.next_look - time.monotonic())
        readable, writable, _ = select.select(reads, writes, [], wait_s)
        if self._channel.write_fd in writable:
            self._is_held_up = False
        return set(readable)

    def _forward_while_read(self, fds: list[int]) -> None:
        for fd in fds:
            _, writable, _ = select.select([], [self._channel.write_fd], [], 0)
            if not writable:
                self._is_held_up = True
                return
            self._forward(fd)

    def _forward(self, fd: int) -> bool:
        """One piece; whether there may be more."""
        try:
            chunk = os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if chunk:
            self._channel.send(self._streams[fd] + chunk)
        else:
            del self._streams[fd]
        return bool(chunk)

    def _take(self, body: bytes) -> None:
        if body[:1] == b"i" and self._input_fd is not None:
            self._pending += body[1:]
        elif body[:1] == b"c":
            self._closes_input = True

    def _feed(self) -> None:
        if self._input_fd is None:
            return
        try:
            if self._pending:
                del self._pending[: os.write(self._input_fd, self._pending[:CHUNK_BYTES])]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._pending.clear()
            self._closes_input = True
        if self._closes_input and not self._pending:
            os.close(self._input_fd)
            self._input_fd = None
