"""The system calls a sandbox may not make, as a BPF program."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (pyseccomp has no annotations)

from __future__ import annotations

import errno
import logging
import tempfile
from functools import cache

from rollstream.schemas.errors import IsolationError

logger = logging.getLogger(__name__)

FORBIDDEN = (
    # other processes
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd",
    # keys, kernel programs, profiling, rings
    "keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter",
    "io_uring_register",
    # mounts and namespaces
    "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick",
    "mount_setattr", "unshare", "setns",
    # machine
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "swapon", "swapoff", "reboot",
    "syslog", "quotactl", "acct", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "iopl", "ioperm",
    "vhangup",
    # files by handle, watching all files, placement of memory
    "open_by_handle_at", "name_to_handle_at", "lookup_dcookie", "fanotify_init", "mbind", "set_mempolicy",
    "move_pages", "migrate_pages", "memfd_secret",
)  # fmt: skip
ABSENT = ("memfd_create", "shmget", "clone3")
"""Answered ENOSYS. Memory in no process escapes the watch over memory; glibc falls back from clone3 to clone, whose
flags a filter can see."""
NAMESPACE_FLAGS = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
ALLOWED_SOCKET_FAMILIES = frozenset({1, 2, 10})
"""UNIX, INET, INET6; the network namespace does not cover the others (vsock, netlink, alg)."""
TERMINAL_INJECTIONS = (0x5412, 0x541C)
"""TIOCSTI, TIOCLINUX; compared in 32 bits, as the kernel does (CVE-2019-10063)."""


@cache
def seccomp_program() -> bytes:
    """The filter for ``bwrap --seccomp``.

    Raises:
        IsolationError: libseccomp is missing.
    """
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        raise IsolationError(
            f"cannot filter system calls, libseccomp is missing ({error}): install it (Debian, Ubuntu: libseccomp2)"
        ) from error
    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    refused = pyseccomp.ERRNO(errno.EPERM)
    for name in FORBIDDEN:
        if pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) < 0:
            logger.info("libseccomp does not know system call %s on this machine; it is not filtered", name)
            continue
        rules.add_rule(refused, name)
    for name in ABSENT:
        rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), name)
    for flag in NAMESPACE_FLAGS:
        rules.add_rule(refused, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    for family in range(max(ALLOWED_SOCKET_FAMILIES)):
        if family not in ALLOWED_SOCKET_FAMILIES:
            rules.add_rule(refused, "socket", pyseccomp.Arg(0, pyseccomp.EQ, family))
    rules.add_rule(refused, "socket", pyseccomp.Arg(0, pyseccomp.GT, max(ALLOWED_SOCKET_FAMILIES)))
    # Same uid as the supervisor: without this a call could lower the limits of PID 1.
    rules.add_rule(refused, "prlimit64", pyseccomp.Arg(0, pyseccomp.NE, 0))
    for request in TERMINAL_INJECTIONS:
        rules.add_rule(refused, "ioctl", pyseccomp.Arg(1, pyseccomp.MASKED_EQ, 0xFFFFFFFF, request))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
