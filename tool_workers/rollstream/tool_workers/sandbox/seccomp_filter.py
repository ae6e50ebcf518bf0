"""The system calls a sandbox may make, as BPF programs.

The first program, loaded by bubblewrap, allows what ordinary programs need and answers everything else as if the kernel
did not know it. The second one, loaded by the supervisor, is about what attackers try: it has the kernel ask the
supervisor, which refuses and counts (``inside/denials.py``). The third is the second one without asking.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (pyseccomp has no annotations)

from __future__ import annotations

import errno
import logging
import tempfile
from dataclasses import dataclass
from functools import cache
from typing import Any

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.inside.denials import MAP_HUGETLB
from rollstream.tool_workers.sandbox.system_calls import (
    ALLOWED,
    ALLOWED_SOCKET_FAMILIES,
    ANSWERED,
    FORBIDDEN,
)

logger = logging.getLogger(__name__)

NAMESPACE_FLAGS = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
TERMINAL_INJECTIONS = (0x5412, 0x541C)
"""TIOCSTI, TIOCLINUX; compared in 32 bits, as the kernel does (CVE-2019-10063)."""
INTERNET_FAMILIES = (2, 10)
LOCAL_FAMILY = 1
NOTICE_FOLDERS = 1026
"""F_NOTIFY of fcntl: tells who uses a folder, whichever sandbox it is."""
BUFFER_SIZES = (7, 8)
"""SO_SNDBUF and SO_RCVBUF: what they allow to be queued is in no process's memory."""
SOL_SOCKET = 1
RLIMIT_CORE = 4
"""Below and above ours, the kernel hands what crashes to a program of the host where its core_pattern names one."""
MAP_SHARED = 1
PRIO_USER, IOPRIO_WHO_USER = 2, 3
SUPERVISOR_PID = 1
ASKED_BY_ARGUMENTS = ("clone", "socket", "socketpair", "fcntl", "mmap", "prlimit64", "ioctl")
BINARY_TREE = 2
SETTERS_OF_OTHERS = {"sched_setaffinity": 0, "sched_setscheduler": 0, "sched_setparam": 0, "sched_setattr": 0,
                     "setpriority": 1, "ioprio_set": 1}  # fmt: skip
"""Where each names the process it changes: changes to the supervisor would slow it down."""


@dataclass(frozen=True)
class SeccompPrograms:
    """BPF programs, and the names of the system calls the asking one asks about."""

    allowing: bytes
    asking: bytes
    refusing: bytes
    asked_names: dict[int, str]


@cache
def seccomp_programs() -> SeccompPrograms:
    """The filters of every sandbox.

    Raises:
        IsolationError: libseccomp is missing.
    """
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        raise IsolationError(
            f"cannot filter system calls, libseccomp is missing ({error}): install it (Debian, Ubuntu: libseccomp2)"
        ) from error
    names = {number: name for name in (*FORBIDDEN, *ASKED_BY_ARGUMENTS, *SETTERS_OF_OTHERS)
             if (number := pyseccomp.resolve_syscall(pyseccomp.system_arch(), name)) >= 0}  # fmt: skip
    return SeccompPrograms(
        allowing=_allowing(pyseccomp),
        asking=_forbidding(pyseccomp, pyseccomp.NOTIFY, pyseccomp.NOTIFY),
        refusing=_forbidding(pyseccomp, pyseccomp.ERRNO(errno.EPERM), pyseccomp.ALLOW),
        asked_names=names,
    )


def _allowing(pyseccomp: Any) -> bytes:
    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ERRNO(errno.ENOSYS))
    for name in (*ALLOWED, *FORBIDDEN):
        if pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) < 0:
            logger.debug("libseccomp does not know system call %s on this machine; it is not allowed", name)
            continue
        rules.add_rule(pyseccomp.ALLOW, name)
    return _exported(rules)


def _forbidding(pyseccomp: Any, refused: int, counted: int) -> bytes:
    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    equal, masked_equal = pyseccomp.EQ, pyseccomp.MASKED_EQ
    for name in FORBIDDEN:
        if pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) >= 0:
            rules.add_rule(refused, name)
    for flag in NAMESPACE_FLAGS:
        rules.add_rule(refused, "clone", pyseccomp.Arg(0, masked_equal, flag, flag))
    for family in range(max(ALLOWED_SOCKET_FAMILIES)):
        if family not in ALLOWED_SOCKET_FAMILIES:
            rules.add_rule(refused, "socket", pyseccomp.Arg(0, masked_equal, 0xFFFFFFFF, family))
    rules.add_rule(refused, "socket", pyseccomp.Arg(0, pyseccomp.GT, max(ALLOWED_SOCKET_FAMILIES)))
    if counted != pyseccomp.ALLOW:
        for family in INTERNET_FAMILIES:
            rules.add_rule(counted, "socket", pyseccomp.Arg(0, equal, family))
        # What is shared and no longer mapped is in no process's memory: the supervisor keeps account.
        rules.add_rule(counted, "mmap", pyseccomp.Arg(3, masked_equal, MAP_SHARED, MAP_SHARED))
        rules.add_rule(counted, "mmap", pyseccomp.Arg(3, masked_equal, MAP_HUGETLB, MAP_HUGETLB))
    else:
        rules.add_rule(pyseccomp.ERRNO(errno.ENOMEM), "mmap", pyseccomp.Arg(3, masked_equal, MAP_HUGETLB, MAP_HUGETLB))
    # Same uid as the supervisor: without this a call could lower the limits of PID 1.
    rules.add_rule(refused, "prlimit64", pyseccomp.Arg(0, pyseccomp.NE, 0))
    for name, place in SETTERS_OF_OTHERS.items():
        rules.add_rule(refused, name, pyseccomp.Arg(place, masked_equal, 0xFFFFFFFF, SUPERVISOR_PID))
    # By user they would change the supervisor along with the caller.
    for name, kind in (("setpriority", PRIO_USER), ("ioprio_set", IOPRIO_WHO_USER)):
        rules.add_rule(refused, name, pyseccomp.Arg(0, masked_equal, 0xFFFFFFFF, kind))
    rules.add_rule(refused, "socketpair", pyseccomp.Arg(0, pyseccomp.NE, LOCAL_FAMILY))
    rules.add_rule(refused, "fcntl", pyseccomp.Arg(1, masked_equal, 0xFFFFFFFF, NOTICE_FOLDERS))
    # Honest programs ask for these too, and need nothing but the answer.
    as_if_done = pyseccomp.ERRNO(0)
    for name in ANSWERED:
        rules.add_rule(as_if_done, name)
    for option in BUFFER_SIZES:
        level = pyseccomp.Arg(1, masked_equal, 0xFFFFFFFF, SOL_SOCKET)
        rules.add_rule(as_if_done, "setsockopt", level, pyseccomp.Arg(2, masked_equal, 0xFFFFFFFF, option))
    rules.add_rule(as_if_done, "setrlimit", pyseccomp.Arg(0, masked_equal, 0xFFFFFFFF, RLIMIT_CORE))
    own, kind = pyseccomp.Arg(0, equal, 0), pyseccomp.Arg(1, masked_equal, 0xFFFFFFFF, RLIMIT_CORE)
    rules.add_rule(as_if_done, "prlimit64", own, kind, pyseccomp.Arg(2, pyseccomp.NE, 0))
    # Their flags tell what the host has in memory of a file.
    for name in ("preadv2", "pwritev2"):
        rules.add_rule(pyseccomp.ERRNO(errno.EOPNOTSUPP), name, pyseccomp.Arg(5, pyseccomp.NE, 0))
    for request in TERMINAL_INJECTIONS:
        rules.add_rule(refused, "ioctl", pyseccomp.Arg(1, masked_equal, 0xFFFFFFFF, request))
    return _exported(rules)


def _exported(rules: Any) -> bytes:
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
