"""Runs the role processes of one machine: restart, log files, drain.

Invariants:

* every process is the leader of its own session and process group; what it leaves behind is killed with it;
* a process is running, waiting for its restart, finished or given up: never silently gone;
* ``run`` returns or raises only when no process it started is alive;
* if the supervisor dies without a word (``kill -9``), the kernel sends SIGTERM to the processes it started.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from rollstream.cli.restart_policy import Finished, GiveUp, Restart, RestartPolicy, after_exit
from rollstream.schemas.errors import RollstreamError

ProcessPhase = Literal["starting", "running", "restarting", "finished", "failed", "stopped"]

LAST_LINES = 15
MAX_LINE_BYTES = 16 * 1024
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ProcessFailedError(RollstreamError):
    """A role process could not be kept alive. The message names it and ends with its last lines."""


@dataclass(frozen=True)
class ProcessSpec:
    """One process to keep alive.

    Attributes:
        name: unique, shown before each of its lines: ``rollout-worker-0``.
        command: program and arguments.
        log_path: everything it writes is appended there.
        environment: variables on top of the supervisor's own.
        may_finish: exit code 0 means that its work is done.
        restarts: back-off and budget.
    """

    name: str
    command: Sequence[str]
    log_path: Path
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    may_finish: bool = False
    restarts: RestartPolicy = field(default_factory=RestartPolicy)


@dataclass(frozen=True)
class ProcessState:
    """What a process is doing, for the live view and the tests."""

    name: str
    phase: ProcessPhase
    pid: int | None = None
    restarts: int = 0
    exit_code: int | None = None


class Supervisor:
    """Keeps the processes of ``specs`` alive until told to stop.

    ``stop`` begins the drain: SIGTERM to each process, and SIGKILL to its group after ``drain_s``. ``kill`` ends the
    drain at once. ``on_line`` receives every complete line as (process name, line).
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        *,
        drain_s: float = 30.0,
        on_line: Callable[[str, str], None] | None = None,
        stop: asyncio.Event | None = None,
        kill: asyncio.Event | None = None,
    ) -> None:
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            raise ValueError(f"process names must be unique, got {names!r}")
        self._specs = list(specs)
        self._drain_s = drain_s
        self._on_line = on_line
        self._states = {name: ProcessState(name, "starting") for name in names}
        self._last_lines: dict[str, list[str]] = {name: [] for name in names}
        self._finished = {name: asyncio.Event() for name in names}
        self.stop = stop or asyncio.Event()
        self.kill = kill or asyncio.Event()

    def states(self) -> list[ProcessState]:
        """The present state of every process, in the order of the specs."""
        return [self._states[spec.name] for spec in self._specs]

    async def wait_finished(self, name: str) -> None:
        """Wait until a process that may finish has done so (forever if it fails: then ``run`` raises)."""
        await self._finished[name].wait()

    async def run(self) -> None:
        """Run all processes; return after ``stop`` was set, or when every one of them has finished.

        Raises:
            ProcessFailedError: a process spent its restart budget; all others were drained first.
        """
        failures: list[ProcessFailedError] = []
        async with asyncio.TaskGroup() as tasks:
            for spec in self._specs:
                tasks.create_task(self._keep_alive(spec, failures), name=f"supervise {spec.name}")
        if failures:
            raise failures[0]

    async def _keep_alive(self, spec: ProcessSpec, failed: list[ProcessFailedError]) -> None:
        failures = restarts = 0
        while not self.stop.is_set():
            started = time.monotonic()
            exit_code = await self._run_once(spec, restarts)
            if self.stop.is_set():
                break
            ran_s = time.monotonic() - started
            decision = after_exit(
                spec.restarts, exit_code=exit_code, ran_s=ran_s, failures=failures, may_finish=spec.may_finish
            )
            match decision:
                case Finished():
                    self._states[spec.name] = ProcessState(spec.name, "finished", None, restarts, exit_code)
                    self._finished[spec.name].set()
                    return
                case GiveUp():
                    self._states[spec.name] = ProcessState(spec.name, "failed", None, restarts, exit_code)
                    failed.append(self._failure(spec, exit_code, restarts))
                    self.stop.set()
                    return
                case Restart(delay_s, failures):
                    restarts += 1
                    self._states[spec.name] = ProcessState(spec.name, "restarting", None, restarts, exit_code)
                    self._say(spec.name, f"{_ended(exit_code)}; restart {restarts} in {delay_s:g} s")
                    await _wait_up_to(self.stop, delay_s)
        self._states[spec.name] = ProcessState(spec.name, "stopped", None, restarts)

    def _failure(self, spec: ProcessSpec, exit_code: int, restarts: int) -> ProcessFailedError:
        tail = "\n".join(f"  {line}" for line in self._last_lines[spec.name]) or "  (it wrote nothing)"
        again = f" after {restarts} restarts" if restarts else ""
        return ProcessFailedError(
            f"{spec.name} could not be kept alive: {_ended(exit_code)}{again}. "
            f"Its log is {str(spec.log_path)!r}; the last lines:\n{tail}"
        )

    async def _run_once(self, spec: ProcessSpec, restarts: int) -> int:
        spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        # Not asyncio's own pipe: with that, ``wait`` also waits for grandchildren that hold the other end.
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb", buffering=0) as output, spec.log_path.open("ab", buffering=0) as log:
            try:
                process = await asyncio.create_subprocess_exec(
                    *spec.command,
                    env={**os.environ, **spec.environment},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=write_end,
                    stderr=write_end,
                    start_new_session=True,
                    preexec_fn=_die_with(os.getpid()),
                )
            except OSError as error:
                self._say(spec.name, f"cannot start {spec.command[0]!r}: {error}")
                return 127
            finally:
                os.close(write_end)
            try:
                self._states[spec.name] = ProcessState(spec.name, "running", process.pid, restarts)
                async with asyncio.TaskGroup() as tasks:
                    reader = tasks.create_task(self._copy_lines(spec.name, output, log))
                    ender = tasks.create_task(self._end_on_stop(process))
                    exit_code = await process.wait()
                    ender.cancel()
                    # Whatever the leader left in its group would keep the pipe open.
                    _signal_group(process.pid, signal.SIGKILL)
                    await asyncio.wait([reader], timeout=5.0)
                    reader.cancel()
                return exit_code
            finally:
                if process.returncode is None:
                    _signal_group(process.pid, signal.SIGKILL)

    async def _copy_lines(self, name: str, output: IO[bytes], log: IO[bytes]) -> None:
        stream = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), output)
        try:
            await self._copy(name, stream, log)
        finally:
            transport.close()

    async def _copy(self, name: str, stream: asyncio.StreamReader, log: IO[bytes]) -> None:
        rest = b""
        while chunk := await stream.read(65536):
            log.write(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._say(name, line.decode(errors="replace").rstrip("\r"))
        if rest:
            self._say(name, rest.decode(errors="replace"))

    async def _end_on_stop(self, process: asyncio.subprocess.Process) -> None:
        await self.stop.wait()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await _wait_up_to(self.kill, self._drain_s)
        _signal_group(process.pid, signal.SIGKILL)

    def _say(self, name: str, line: str) -> None:
        self._last_lines[name] = [*self._last_lines[name], line][-LAST_LINES:]
        if self._on_line is not None:
            self._on_line(name, line)


@contextlib.contextmanager
def drain_on_signals(stop: asyncio.Event, kill: asyncio.Event) -> Generator[None]:
    """Inside the block the first SIGINT or SIGTERM sets ``stop`` (drain), the second sets ``kill``."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (kill if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _die_with(parent_pid: int) -> Callable[[], None]:
    def in_child() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent_pid:  # the parent died before prctl took effect
            os._exit(1)

    return in_child


def _signal_group(leader_pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, number)


def _ended(exit_code: int) -> str:
    if exit_code < 0:
        return f"killed by signal {-exit_code} ({signal.strsignal(-exit_code)})"
    return f"ended with exit code {exit_code}"


async def _wait_up_to(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
