"""What an attack is, and the words that payloads are written in."""

from __future__ import annotations

from dataclasses import dataclass

SPEECH = """
import contextlib, ctypes, errno, fcntl, glob, mmap, os, resource, signal, socket, struct, sys
import tempfile, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *given):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in given])
    return result, errno.errorcode.get(ctypes.get_errno(), "0")
def say(got_out):
    print("OUT" if got_out else "HELD", flush=True)
def works(action):
    try:
        result = action()
    except (OSError, MemoryError, ValueError, RuntimeError):
        return False
    return result is None or bool(result)
def struct_of(*longs):
    return (ctypes.c_ulong * len(longs))(*longs)
"""
"""Before every payload: ``call`` makes a system call and tells the error, ``say`` is the verdict."""


@dataclass(frozen=True)
class Attack:
    """Source text for Python that says OUT if it got what it wanted, HELD if not.

    ``{word}``, ``{canary}``, ``{port}``, ``{key}`` are facts of the host, see ``Outside`` in the tests.

    Attributes:
        without: the layer that holds it: where that is missing it gets out. "local": without any sandbox, as root.
            None: what it is after is nowhere, or harms whoever runs the control.
    """

    code: str
    without: str | None = None
