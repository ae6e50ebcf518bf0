"""Counts what the system-call filter refuses, instead of letting it go unnoticed.

The filter is loaded here, once, before anything of the model's runs; every later process inherits it. For what it
forbids, the kernel asks this process (seccomp user notification, Linux 5.5), which answers EPERM and counts. Internet
sockets are counted too and allowed: there is no network they could reach. Shared mappings are allowed up to a sum: what
a program no longer maps of them stays in memory, and no process shows it.

Where the kernel cannot ask (older ones, gVisor), a filter that refuses by itself is loaded, and nothing is counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)

SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
SET_MODE_FILTER = 1
NEW_LISTENER = 1 << 3
PR_SET_NO_NEW_PRIVS = 38
RECEIVE = 0xC0502100
SEND = 0xC0182101
CONTINUE = 1
NOTIFICATION_BYTES = 80
AF_INET, AF_INET6 = 2, 10
INTERNET_SOCKET = "internet_socket"
SHARED_MAPPING = "mmap"
MAP_HUGETLB = 0x40000
"""Never given: no program needs it, the pool is the machine's, and what is taken of it is in no process's memory."""
SHARED_PER_MEMORY = 2
"""Most bytes of shared mappings, as a multiple of the memory; mappings of files are counted too."""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


class Denials:
    """What has been refused since it was last asked."""

    def __init__(self, names: dict[int, str], listener_fd: int | None, memory_bytes: int = 0) -> None:
        self._names = names
        self.listener_fd = listener_fd
        """Readable when the kernel asks; None: it never does."""
        self._counts: dict[str, int] = {}
        self._most_shared_bytes = SHARED_PER_MEMORY * memory_bytes
        self.shared_bytes = 0
        """Of all shared mappings that were made since the sandbox was last empty."""

    def answer(self) -> None:
        """Answer what the kernel asks now; never waits."""
        assert self.listener_fd is not None
        notification = bytearray(NOTIFICATION_BYTES)
        try:
            fcntl.ioctl(self.listener_fd, RECEIVE, notification)
        except OSError:
            return  # who asked was killed meanwhile
        id_, _, _, number = struct.unpack_from("=QIIi", notification)
        first_argument, length, _, flags = struct.unpack_from("=4Q", notification, 32)
        name = self._names.get(number, f"call_{number}")
        if name == SHARED_MAPPING:
            is_small = self.shared_bytes + length <= self._most_shared_bytes and not flags & MAP_HUGETLB
            self.shared_bytes += length if is_small else 0
            return self._send(id_, 0 if is_small else -errno.ENOMEM, CONTINUE if is_small else 0)
        is_allowed = name == "socket" and first_argument & 0xFFFFFFFF in (AF_INET, AF_INET6)
        if is_allowed:
            name = INTERNET_SOCKET
        self._counts[name] = self._counts.get(name, 0) + 1
        self._send(id_, 0 if is_allowed else -errno.EPERM, CONTINUE if is_allowed else 0)

    def _send(self, id_: int, error: int, flags: int) -> None:
        assert self.listener_fd is not None
        with contextlib.suppress(OSError):  # who asked was killed meanwhile
            fcntl.ioctl(self.listener_fd, SEND, struct.pack("=QqiI", id_, 0, error, flags))

    def take(self) -> dict[str, int]:
        """The counts so far, and begin anew."""
        counts, self._counts = self._counts, {}
        return counts


def load_filters(first_path: str, path: str, fallback_path: str, names: dict[int, str], memory_bytes: int) -> Denials:
    """Load the filter that allows, and the one that asks, else the one that refuses; for good, and for all children.

    Raises:
        OSError: neither can be loaded.
    """
    if not path:
        return Denials({}, None)
    _call(_libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if first_path:
        _set_filter(first_path, 0)
    try:
        listener_fd = _set_filter(path, NEW_LISTENER)
    except OSError:
        _set_filter(fallback_path, 0)
        return Denials({}, None)
    os.set_inheritable(listener_fd, False)
    return Denials(names, listener_fd, memory_bytes)


def _set_filter(path: str, flags: int) -> int:
    with open(path, "rb") as file:
        instructions = file.read()
    program = _Program(len(instructions) // 8, instructions)
    number = SYS_SECCOMP[os.uname().machine]
    return _call(_libc.syscall, number, SET_MODE_FILTER, flags, ctypes.byref(program))


def _call(function: Callable[..., int], *arguments: object) -> int:
    result = function(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call with {arguments[:2]} failed")
    return result
