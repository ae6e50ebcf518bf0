"""Between calls: waits for the worker, and finds out if a stopped program goes on meanwhile.

A program can have itself woken in many ways (timers, signals of descriptors, of connections), so that having stopped it
is not enough. Its parent is told of everything that happens to it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable

WAKEUPS_BYTES = 4096

TYPE_CHECKING = False
if TYPE_CHECKING:  # modules that would take memory of every sandbox
    from types import FrameType


class Rest:
    """Args: the descriptor at which the worker asks for something."""

    def __init__(self, worker_fd: int) -> None:
        self._worker_fd = worker_fd
        self._read_fd, self._write_fd = os.pipe()
        for fd in (self._read_fd, self._write_fd):
            os.set_blocking(fd, False)

    def until_asked(self, has_stirred: Callable[[], bool]) -> bool:
        """Whether the worker asks for something; False: ``has_stirred``, which is asked whenever it may have changed.

        Only here signals of children are heard: during calls this process is deaf to them.
        """
        poll = select.poll()
        poll.register(self._worker_fd, select.POLLIN)
        poll.register(self._read_fd, select.POLLIN)
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _wake)
        try:
            while not has_stirred():
                if any(fd == self._worker_fd for fd, _ in poll.poll()):
                    return True
                with contextlib.suppress(BlockingIOError):
                    os.read(self._read_fd, WAKEUPS_BYTES)
            return False
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)


def _wake(_number: int, _frame: FrameType | None) -> None:
    """Having a handler is what makes Python tell of a signal."""
