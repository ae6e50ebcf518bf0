"""Descriptors that one thread may close while another uses them.

A closed descriptor's number is soon another file's, so what is shared between threads is reached through here only:
used and closed under one lock, and never used afterwards.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress


class KeptFile:
    """A short file whose content changes; when it can no longer be read, it says what it said last.

    Args:
        fd: closed by ``close``.
        max_bytes: so much of its beginning is read.
    """

    def __init__(self, fd: int, max_bytes: int) -> None:
        self._fd: int | None = fd
        self._max_bytes = max_bytes
        self._content = b""
        self._lock = threading.Lock()

    def read(self) -> bytes:
        """Its beginning, as it is now if it can be read."""
        with self._lock:
            return self._read()

    def close(self) -> None:
        """Keep its content and give the descriptor back. Safe to repeat."""
        with self._lock:
            self._read()
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _read(self) -> bytes:
        if self._fd is not None:
            with suppress(OSError):  # of a control group that is gone
                self._content = os.pread(self._fd, self._max_bytes, 0)
        return self._content


class ProcessHandle:
    """A process, and never another one that has got its number. ``pidfd``: closed by ``close``."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd: int | None = pidfd
        self._lock = threading.Lock()

    def kill(self) -> None:
        """Nothing happens if it has ended, was closed or may not be signalled by us."""
        with self._lock:
            if self._pidfd is not None:
                with suppress(OSError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Give the descriptor back. Safe to repeat."""
        with self._lock:
            if self._pidfd is not None:
                os.close(self._pidfd)
                self._pidfd = None
