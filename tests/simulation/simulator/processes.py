"""Simulated processes: what can be killed, frozen and woken; every callback of the event loop belongs to one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field


class ProcessKilled(BaseException):
    """Unwinds the step in which a process has killed itself; nothing of it runs afterwards."""


@dataclass(eq=False)
class Process:
    """One operating system process. ``serial`` is unique within a simulation."""

    name: str
    serial: int
    is_alive: bool = True
    is_frozen: bool = False
    held: list[ReadyEntry] = field(default_factory=list["ReadyEntry"])
    """What became ready while it was frozen."""
    on_death: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    on_wake: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    on_freeze: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])

    def __str__(self) -> str:
        return f"{self.name}#{self.serial}"


@dataclass(frozen=True, slots=True)
class Owner:
    """To which task, and so to which process, a callback belongs. ``task`` 0 is the world outside of all tasks."""

    task: int
    process: Process


OWNER: ContextVar[Owner | None] = ContextVar("OWNER", default=None)

ReadyEntry = tuple[int, int, asyncio.Handle, Process]
"""(task number, arrival, callback, process): sorts by task, then by arrival, never by memory address."""


def current_process() -> Process:
    """The process whose code is running."""
    owner = OWNER.get()
    assert owner is not None, "no simulated process is running"
    return owner.process
