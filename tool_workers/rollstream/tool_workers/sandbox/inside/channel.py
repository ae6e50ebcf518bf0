"""Frames to and from the worker: four bytes big-endian length, then the body.

Over a socket, or over a pair of descriptors where there is none (a container's standard streams).
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from typing import Any

MAX_REQUEST_BYTES = 256 * 1024 * 1024


class Channel:
    """Args: the descriptors to read requests from and to write replies to; they may be the same."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd

    def send(self, body: bytes) -> None:
        """Send one frame; if the worker is gone, so are we."""
        left = memoryview(len(body).to_bytes(4, "big") + body)
        try:
            while left:
                left = left[os.write(self.write_fd, left) :]
        except OSError:
            os._exit(0)

    def send_object(self, reply: dict[str, Any]) -> None:
        """Send a frame of JSON."""
        self.send(json.dumps(reply).encode())

    def receive(self) -> bytes:
        """The next frame; ends the process when the worker's end is closed, or what it says cannot be."""
        size = int.from_bytes(self._exactly(4), "big")
        if size > MAX_REQUEST_BYTES:
            os._exit(72)
        return self._exactly(size)

    def close(self) -> None:
        """In children: they have no part in it."""
        for fd in {self.read_fd, self.write_fd}:
            os.close(fd)

    def _exactly(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            chunk = os.read(self.read_fd, min(size - len(received), 1 << 20))
            if not chunk:
                os._exit(0)
            received += chunk
        return bytes(received)
