"""Control groups for sandboxes: memory and process limits that hold for all processes of a sandbox together.

Three kinds of machine: the controllers on version 2 (delegated to us), on version 1, or out of reach. Each sandbox gets
one group below one of ours, whose name says which process it belongs to, so that a later start can remove what a killed
one has left behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

OURS = re.compile(r"rollstream-(\d+-\d+)")
CONTROLLERS = ("memory", "pids")
DEAD = ("Z", "X")
"""States of a process that has ended and waits to be noticed."""


@dataclass(frozen=True)
class GroupLimits:
    """Of one sandbox: bytes, processes and threads, cores (0: as many as there are)."""

    memory_bytes: int
    processes: int
    cpus: float = 0.0


@dataclass(frozen=True)
class Mounts:
    """Where control groups are, and which of them we are in.

    Attributes:
        v2: our own group of the unified hierarchy; None: it is not mounted.
        v1: our own group of each controller that has a hierarchy of its own, and the root of that hierarchy.
    """

    v2: Path | None
    v1: Mapping[str, tuple[Path, Path]]


def find_mounts(mounts: str, own: str) -> Mounts:
    """Read ``/proc/mounts`` and ``/proc/self/cgroup``. Pure."""
    paths = {controller: path for line in own.splitlines() for _, names, path in [line.split(":", 2)]
             for controller in names.split(",")}  # fmt: skip
    v2: Path | None = None
    v1: dict[str, tuple[Path, Path]] = {}
    for line in mounts.splitlines():
        _, folder, kind, options, *_ = line.split(" ")
        if kind == "cgroup2" and v2 is None:
            v2 = Path(folder) / paths.get("", "/").lstrip("/")
        elif kind == "cgroup":
            for controller in options.split(","):
                if controller in paths:
                    v1[controller] = (Path(folder) / paths[controller].lstrip("/"), Path(folder))
    return Mounts(v2, v1)


@dataclass(frozen=True)
class Group:
    """The groups of one sandbox, one per hierarchy."""

    folders: tuple[Path, ...]
    oom_file: Path | None
    """Tells how many processes were killed because memory was used up."""
    cpu_file: Path | None
    """Tells the processor time of all its processes, ended ones included."""
    kill_file: Path | None

    def enter(self) -> None:
        """Move the calling process into it. Raises OSError."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text("0")

    def kill(self) -> None:
        """Kill every process in it, at once where the kernel can."""
        if self.kill_file is not None:
            with contextlib.suppress(OSError):
                self.kill_file.write_text("1")
                return
        for folder in self.folders:
            for pid in _pids(folder):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def is_removed(self) -> bool:
        """Remove it; False while processes in it are still dying."""
        return all(_is_removed(folder) for folder in self.folders)


class Cgroups:
    """Makes groups for the sandboxes of one worker.

    Attributes:
        kind: where memory and process limits are enforced; ``"none"``: nowhere, ``reason`` says why.
    """

    def __init__(self, mounts: Mounts, name: str, ours: Iterable[int], limits: GroupLimits) -> None:
        self._name = name
        self._limits = limits
        self.reason = ""
        self._parents: dict[str, Path] = {}
        self.kind = "none"
        sweep(mounts)
        self._unified = self._parent(mounts.v2, mounts.v2) if mounts.v2 is not None else None
        if mounts.v2 is not None and self._unified is not None and self._delegates(mounts.v2, set(ours)):
            self.kind = "v2"
        elif all(controller in mounts.v1 for controller in CONTROLLERS):
            wanted = (*CONTROLLERS, *(["cpu"] if limits.cpus and "cpu" in mounts.v1 else []))
            found = {controller: self._parent(*mounts.v1[controller]) for controller in wanted}
            self._parents = {controller: folder for controller, folder in found.items() if folder is not None}
            self.kind = "v1" if len(self._parents) == len(wanted) else "none"
        if self.kind == "none" and not self.reason:
            self.reason = "no control group with the controllers memory and pids is ours to divide"

    def create(self, number: int) -> Group | None:
        """A group for one sandbox; None: there are none here.

        Raises:
            OSError: its limits cannot be set.
        """
        folders = {"": self._unified} if self._unified is not None else {}
        folders |= self._parents if self.kind == "v1" else {}
        made = {controller: folder / f"s{number}" for controller, folder in folders.items()}
        if not made:
            return None
        unified = made.get("")
        try:
            for folder in made.values():
                folder.mkdir(exist_ok=True)
            if self.kind == "v2":
                assert unified is not None
                self._limit_v2(unified)
            elif self.kind == "v1":
                self._limit_v1(made)
        except OSError:
            for folder in made.values():
                _is_removed(folder)
            raise
        if self.kind == "v2" and unified is not None:
            oom_file: Path | None = unified / "memory.events"
        else:
            oom_file = made["memory"] / "memory.oom_control" if "memory" in made else None
        kill_file = unified / "cgroup.kill" if unified is not None else None
        cpu_file = unified / "cpu.stat" if unified is not None else None
        return Group(tuple(made.values()), oom_file, cpu_file, kill_file)

    def close(self) -> None:
        """Remove what is ours; the sandboxes are gone."""
        for folder in [*self._parents.values(), *([self._unified] if self._unified is not None else [])]:
            _remove_tree(folder)

    def _parent(self, own: Path, root: Path) -> Path | None:
        """Ours, below the group we are in, else at the root: children escape the limits of the group we are in."""
        for place in (own, root):
            with contextlib.suppress(OSError):
                folder = place / self._name
                folder.mkdir(exist_ok=True)
                return folder
        return None

    def _delegates(self, own: Path, ours: set[int]) -> bool:
        """Whether the controllers can be had for our children."""
        assert self._unified is not None
        try:
            offered = set((own / "cgroup.controllers").read_text().split())
            if not offered.issuperset(CONTROLLERS):
                return False
            wanted = " ".join(f"+{name}" for name in (*CONTROLLERS, *(["cpu"] if "cpu" in offered else [])))
            if (own / "cgroup.type").exists() and set(_pids(own)) <= ours:
                # A group with processes of its own passes no controllers on: we make way.
                leaf = self._unified.with_name(f"{self._name}-worker")
                leaf.mkdir(exist_ok=True)
                for pid in _pids(own):
                    (leaf / "cgroup.procs").write_text(str(pid))
            (own / "cgroup.subtree_control").write_text(wanted)
            (self._unified / "cgroup.subtree_control").write_text(wanted)
        except OSError as error:
            self.reason = f"the control group {str(own)!r} is not delegated to this worker ({error})"
            if error.errno == errno.EBUSY:
                self.reason += ": other processes are in it; start the worker in one of its own"
            return False
        return True

    def _limit_v2(self, folder: Path) -> None:
        (folder / "memory.max").write_text(str(self._limits.memory_bytes))
        (folder / "pids.max").write_text(str(self._limits.processes))
        with contextlib.suppress(OSError):
            (folder / "memory.swap.max").write_text("0")
        if self._limits.cpus:
            (folder / "cpu.max").write_text(f"{int(self._limits.cpus * 100_000)} 100000")

    def _limit_v1(self, made: Mapping[str, Path]) -> None:
        (made["memory"] / "memory.limit_in_bytes").write_text(str(self._limits.memory_bytes))
        with contextlib.suppress(OSError):  # only where swap is accounted for
            (made["memory"] / "memory.memsw.limit_in_bytes").write_text(str(self._limits.memory_bytes))
        (made["pids"] / "pids.max").write_text(str(self._limits.processes))
        if "cpu" in made:
            (made["cpu"] / "cpu.cfs_period_us").write_text("100000")
            (made["cpu"] / "cpu.cfs_quota_us").write_text(str(int(self._limits.cpus * 100_000)))


def group_name(pid: int) -> str:
    """What groups of a process are called: its number and when it started, because numbers come again."""
    return f"rollstream-{process_identity(pid)}"


def process_identity(pid: int) -> str:
    """Of a living process, never that of another one on this machine."""
    return f"{pid}-{start_ticks(pid)}"


def is_gone(identity: str) -> bool:
    """Whether the process with this identity is dead; False for what is no identity."""
    pid, _, ticks = identity.partition("-")
    return pid.isdecimal() and str(start_ticks(int(pid))) != ticks


def start_ticks(pid: int) -> int:
    """When a living process started, in clock ticks since the machine did; 0: there is no such process."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", errors="replace") as file:
        state, *fields = file.read().rpartition(")")[2].split()
        return 0 if state in DEAD else int(fields[18])
    return 0


def sweep(mounts: Mounts) -> None:
    """Remove the groups of workers that are dead."""
    places = {folder for own, root in mounts.v1.values() for folder in (own, root)}
    places |= {mounts.v2} if mounts.v2 is not None else set()
    for place in places:
        with contextlib.suppress(OSError):
            for folder in [each for each in place.iterdir() if each.is_dir()]:
                match = OURS.match(folder.name)
                if match and is_gone(match[1]):
                    _remove_tree(folder)


def _remove_tree(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for child in [each for each in folder.iterdir() if each.is_dir()]:
            _remove_tree(child)
    _is_removed(folder)


def _is_removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _pids(folder: Path) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(line) for line in (folder / "cgroup.procs").read_text().split()]
    return []
