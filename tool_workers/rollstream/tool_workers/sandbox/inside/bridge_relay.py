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

CHUNK_BYTES = 65536
MAX_PENDING_BYTES = 4 * 1024 * 1024
"""Input the program has not read; beyond it the worker is not read from, and so must wait."""


class BridgeRelay:
    """Relays until the program ends; the sandbox ends with it."""

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

    def relay(self) -> None:
        """Return when the program is over and has been reported."""
        os.set_blocking(self._error_fd, False)
        pidfd = os.pidfd_open(self._started.pid)
        while True:
            ready = self._ready(pidfd)
            if self._denials.listener_fd in ready:
                self._denials.answer()
            for fd in [fd for fd in self._streams if fd in ready]:
                self._forward(fd)
            if self._channel.read_fd in ready:
                self._take(self._channel.receive())
            self._feed()
            cause = self._resources.exceeded()
            if cause is not None or pidfd in ready:
                for fd in list(self._streams):
                    self._forward(fd)
                self._channel.send(b"x" + json.dumps({"cause": cause, "denied": self._denials.take()}).encode())
                return

    def _ready(self, pidfd: int) -> set[int]:
        reads = [pidfd, *self._streams]
        if len(self._pending) < MAX_PENDING_BYTES:
            reads.append(self._channel.read_fd)
        if self._denials.listener_fd is not None:
            reads.append(self._denials.listener_fd)
        writes = [self._input_fd] if self._input_fd is not None and self._pending else []
        wait_s = max(0.0, self._resources.next_look - time.monotonic())
        readable, writable, _ = select.select(reads, writes, [], wait_s)
        return {*readable, *writable}

    def _forward(self, fd: int) -> None:
        try:
            chunk = os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            return
        if chunk:
            self._channel.send(self._streams[fd] + chunk)
        else:
            del self._streams[fd]

    def _take(self, body: bytes) -> None:
        if body[:1] == b"i":
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
