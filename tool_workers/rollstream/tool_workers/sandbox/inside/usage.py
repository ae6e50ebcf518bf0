"""What processes and folders use right now."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

OOM_FILES = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
"""In containers; bubblewrap's sandboxes do not see them, and the worker looks from outside."""
MANY_LOCKS_BYTES = 512 * 1024
"""Of the kernel's list, with about 50 bytes for each."""
MANY_MAPPINGS_BYTES = 256 * 1024
"""Of the list of what a process maps: several thousand lines."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def processes_of_namespace() -> list[int]:
    """All but the supervisor, which is process 1."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and name != "1"]


def descendants(pid: int) -> list[int]:
    """All living processes below ``pid``."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                for child in map(int, file.read().split()):
                    found += [child, *descendants(child)]
    return found


def resident_bytes(pid: int) -> int:
    """Resident memory, shared pages included, and page tables; readable for every process."""
    return sum(_memory_facts(pid))


def _memory_facts(pid: int) -> tuple[int, int]:
    """Resident memory and page tables, which may be large where nothing is resident any more."""
    if any(own := _memory_facts_of(f"/proc/{pid}/status")):
        return own
    with contextlib.suppress(OSError):  # its first thread may have ended: what the others hold is shown only there
        threads = os.listdir(f"/proc/{pid}/task")
        return max((_memory_facts_of(f"/proc/{pid}/task/{thread}/status") for thread in threads), default=(0, 0))
    return 0, 0


def _memory_facts_of(path: str) -> tuple[int, int]:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        text = file.read()
        return _kibibytes(text, b"VmRSS:") * 1024, _kibibytes(text, b"VmPTE:") * 1024
    return 0, 0


def _kibibytes(text: bytes, name: bytes) -> int:
    _, found, rest = text.partition(b"\n" + name)  # at the start of a line: a process may be named like anything
    return int(rest.split(None, 1)[0]) if found else 0


def proportional_bytes(pid: int) -> int:
    """Resident memory with shared pages divided among those who share them, and page tables."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 + _memory_facts(pid)[1]
    return resident_bytes(pid)


def cpu_s(pid: int) -> float:
    """Processor time of a process and of the children it has waited for."""
    return sum(map(int, _stat_fields(pid)[11:15])) / TICKS_PER_S


def is_zombie(pid: int) -> bool:
    """Whether it is dead and only waits to be noticed, or is gone; not if only its first thread has ended."""
    fields = _stat_fields(pid)
    return not fields or (fields[0] in ("Z", "X") and int(fields[17]) <= 1)


def is_stopped(pid: int) -> bool:
    """Whether none of its threads runs or can run before it is told to continue."""
    with contextlib.suppress(OSError):
        states = [_stat_fields(f"{pid}/task/{thread}")[:1] for thread in os.listdir(f"/proc/{pid}/task")]
        return all(state in ([], ["T"], ["Z"], ["X"]) for state in states)
    return True


def used_bytes(folder: str) -> int:
    """Bytes used in the file system of a folder."""
    facts = os.statvfs(folder)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def used_files(folders: Iterable[str]) -> int:
    """Files, folders and extended attributes: what takes kernel memory although it may hold no byte."""
    return sum((facts := os.statvfs(folder)).f_files - facts.f_ffree for folder in folders)


def open_sockets() -> int:
    """Sockets of the network namespace; what is queued in them is in no process's memory."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/net/sockstat") as file:
        return int(file.readline().split()[2])
    return 0


def queued_bytes() -> int:
    """What waits in the stream sockets of the network namespace: in no process's memory, and in no group's on v1."""
    total = 0
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError, ValueError, IndexError), open(path) as file:
            next(file, None)
            for line in file:
                sent, _, received = line.split()[4].partition(":")
                total += int(sent, 16) + int(received, 16)
    return total


def open_terminals() -> int:
    """Pseudo-terminals of the sandbox; the kernel has some thousands for all of them together."""
    with contextlib.suppress(OSError):
        return len(os.listdir("/dev/pts")) - 1
    return 0


def has_many_locks() -> bool:
    """Whether the sandbox holds thousands of locks on files: kernel memory that no control group counts."""
    with contextlib.suppress(OSError), open("/proc/locks", "rb") as file:
        return len(file.read(MANY_LOCKS_BYTES)) == MANY_LOCKS_BYTES
    return False


def has_many_mappings(pid: int) -> bool:
    """Whether a process has thousands of mappings: kernel memory that no process shows."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb", buffering=0) as file:
        read = 0
        while chunk := file.read(MANY_MAPPINGS_BYTES):  # the kernel gives a page at a time
            read += len(chunk)
            if read >= MANY_MAPPINGS_BYTES:
                return True
    return False


def oom_kills() -> int:
    """Processes of our control group that were killed because its memory was used up, as far as it is shown here."""
    for path in OOM_FILES:
        with contextlib.suppress(OSError, ValueError, IndexError), open(path) as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def _stat_fields(pid: int | str) -> list[str]:
    """Of ``/proc/<pid>/stat`` from the state on; a name may hold spaces and parentheses."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", errors="replace") as file:
        return file.read().rpartition(")")[2].split()
    return []
