"""The processes of a run: each can be hurt through its signals and its wire, and comes back when it is told to."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fault_plan import Role
from network_proxy import NetworkProxy

PR_SET_PDEATHSIG = 1
DEAD_WITHIN_S = 10.0
_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """For the child before it becomes the program: nothing outlives a run, however that ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Running:
    """A process and what it was called."""

    process: asyncio.subprocess.Process
    name: str
    started_at: float

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.returncode is None

    def signal(self, number: int) -> None:
        """Send a signal; a process that has ended just now does not mind."""
        if self.is_alive:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    def signal_all(self, number: int) -> None:
        """Send a signal to it and to its children."""
        if self.is_alive:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def kill(self) -> None:
        """Kill -9, and wait until it is dead."""
        self.signal(signal.SIGKILL)
        async with asyncio.timeout(DEAD_WITHIN_S):
            await self.process.wait()

    async def ended_within(self, seconds: float) -> bool:
        """Whether it ends in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.process.wait()
        return not self.is_alive


class Member:
    """One place of the cluster, in which one process at a time works behind a wire of its own.

    Attributes:
        running: the process there now; None before the first.
        is_wanted: whether there should be one: scaled away, or stopped, is not a crash.
        is_being_hurt: a fault is at work; its process ends and comes back on purpose.
    """

    def __init__(
        self,
        role: Role,
        name: str,
        proxy: NetworkProxy,
        command: Callable[[str, str], tuple[str, ...]],
        folder: Path,
        environment: Mapping[str, str],
    ) -> None:
        """``command`` makes it of the broker's address and the process's name."""
        self.role: Role = role
        self.name = name
        self.proxy = proxy
        self.running: Running | None = None
        self.is_wanted = False
        self.is_being_hurt = False
        self._command = command
        self._folder = folder
        self._environment = environment

    async def start(self, *, name: str = "", scratch: str = "scratch") -> Running:
        """Start a process in this place.

        Args:
            name: what it is called; by default as the place.
            scratch: its folder for temporary files. Two processes with the same one are on the same host.
        """
        name = name or self.name
        temporary = self._folder / scratch
        temporary.mkdir(exist_ok=True)
        with (self._folder / "logs" / f"{self.name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self._command(self.proxy.address, name),
                env={**self._environment, **self._address(), "TMPDIR": str(temporary)},
                cwd=self._folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self.is_wanted = True
        self.running = Running(process, name, time.time())
        return self.running

    def _address(self) -> dict[str, str]:
        return {"ROLLSTREAM_KAFKA__BOOTSTRAP": self.proxy.address}

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.running is not None and self.running.is_alive

    @property
    def age_s(self) -> float:
        """How long its process has been running; below 0 when none runs."""
        return time.time() - self.running.started_at if self.running is not None and self.is_alive else -1.0

    @property
    def has_crashed(self) -> bool:
        """Whether its process has ended though nobody hurt it."""
        return self.is_wanted and not self.is_being_hurt and self.running is not None and not self.running.is_alive

    def last_words(self, lines: int = 12) -> str:
        """The end of its log."""
        log = self._folder / "logs" / f"{self.name}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""
