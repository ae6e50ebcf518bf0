"""What to do when the machine has no more of something that a sandbox needs. Pure."""

from __future__ import annotations

import errno

PROCESSES = (
    "no more processes are allowed here: raise the limit of the worker's user (`ulimit -u`), its unit (`TasksMax`) or "
    "its container (`--pids-limit`), or lower `max_sessions`"
)
DESCRIPTORS = (
    "no more open files are allowed here: raise the limit of the worker (`ulimit -n`) or of the machine "
    "(`fs.file-max`), or lower `max_sessions`"
)
MEMORY = "no memory is left: give the worker's machine or container more, or lower `max_sessions`"
NO_SUCH_CALL = "this kernel does not have, or does not permit, what is needed: Linux 5.3 or later is"
REMEDIES = {
    errno.EAGAIN: PROCESSES,
    errno.EMFILE: DESCRIPTORS,
    errno.ENFILE: DESCRIPTORS,
    errno.ETOOMANYREFS: DESCRIPTORS,
    errno.ENOMEM: MEMORY,
    errno.ENOBUFS: MEMORY,
    errno.ENOSYS: NO_SUCH_CALL,
}


def explain_scarcity(error: OSError) -> str:
    """The error, and its remedy where there is a known one."""
    remedy = REMEDIES.get(error.errno) if error.errno is not None else None
    return str(error) if remedy is None else f"{error}; {remedy}"
