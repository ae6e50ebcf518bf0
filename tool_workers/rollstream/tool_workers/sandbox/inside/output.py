"""The first and the last bytes of a stream of any length."""

from __future__ import annotations

import os


class Output:
    """Keeps at most ``kept_bytes``, half from the beginning and half from the end."""

    def __init__(self, kept_bytes: int) -> None:
        self.kept_bytes = kept_bytes
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
