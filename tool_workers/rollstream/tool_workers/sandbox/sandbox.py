"""One sandbox: programs run in it one after another, and its `/workspace` lasts until it is closed."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.replies import (
    Execution,
    SandboxLostError,
    frame,
    frame_size,
    parse_execution,
    parse_ready,
)
from rollstream.tool_workers.sandbox.spawning import Spawner, SupervisorProcess, spawning_thread
from rollstream.tool_workers.settings import SandboxSettings

GRACE_S = 3.0
"""Time a supervisor gets beyond a program's time limit to kill everything and answer."""
BASH = "/bin/bash"


class Sandbox(Protocol):
    """What a tool can do in the sandbox of its session; take a parameter of this type to be given one."""

    async def bash(self, command: str, *, timeout_s: float) -> Execution:
        """Run a command line in a fresh bash, in `/workspace`. Raises SandboxLostError."""
        ...

    async def python(self, source: str, *, timeout_s: float) -> Execution:
        """Run source text in a fresh Python, in `/workspace`. Raises SandboxLostError."""
        ...

    async def run(self, *arguments: str, timeout_s: float) -> Execution:
        """Run a program by its absolute path, in `/workspace`. Raises SandboxLostError."""
        ...


class SupervisedSandbox:
    """A sandbox behind its supervisor's socket.

    One program at a time; callers wait for one another. A time-out of the supervisor, a broken reply or a cancelled
    caller leaves it in an unknown state: it is killed, and every later call raises SandboxLostError.
    """

    def __init__(
        self,
        process: SupervisorProcess,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        programs: asyncio.Semaphore,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._programs = programs
        self._one_at_a_time = asyncio.Lock()
        self._is_alive = True

    @property
    def is_alive(self) -> bool:
        """Whether it may still answer."""
        return self._is_alive

    async def bash(self, command: str, *, timeout_s: float) -> Execution:
        """Run a command line."""
        return await self._execute({"argv": [BASH, "-c", command], "timeout_s": timeout_s})

    async def python(self, source: str, *, timeout_s: float) -> Execution:
        """Run source text; the interpreter is forked from the supervisor's, so it starts in milliseconds."""
        return await self._execute({"python": source, "timeout_s": timeout_s})

    async def run(self, *arguments: str, timeout_s: float) -> Execution:
        """Run a program."""
        return await self._execute({"argv": list(arguments), "timeout_s": timeout_s})

    async def _execute(self, request: dict[str, Any]) -> Execution:
        async with self._one_at_a_time, self._programs:
            if not self._is_alive:
                raise SandboxLostError("the sandbox has died before this call")
            self._is_alive = False
            try:
                async with asyncio.timeout(request["timeout_s"] + GRACE_S):
                    self._writer.write(frame(request))
                    await self._writer.drain()
                    execution = parse_execution(await self._receive())
                self._is_alive = True
            except TimeoutError as error:
                raise SandboxLostError(f"the supervisor did not answer within {GRACE_S} s of the time limit") from error
            except (OSError, EOFError) as error:
                raise SandboxLostError(f"the supervisor is gone: {self._process.complaint() or repr(error)}") from error
            finally:
                if not self._is_alive:
                    self._process.kill()
            return execution

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Wait for the supervisor's first word.

        Raises:
            SandboxLostError: it said something else, or nothing in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                parse_ready(await self._receive())
        except (TimeoutError, OSError, EOFError) as error:
            raise SandboxLostError(f"no supervisor came up: {self._process.complaint() or repr(error)}") from error

    async def _receive(self) -> bytes:
        return await self._reader.readexactly(frame_size(await self._reader.readexactly(4)))

    async def close(self) -> None:
        """Kill everything in it and free it. Safe to repeat."""
        self._is_alive = False
        self._writer.close()
        await asyncio.to_thread(self._process.dispose)


class SandboxFactory:
    """Opens sandboxes. An async context manager; close all sandboxes before leaving it."""

    def __init__(self, spawner: Spawner, limits: SandboxSettings, *, max_running_programs: int) -> None:
        self._spawner = spawner
        self._limits = limits
        self._programs = asyncio.Semaphore(max_running_programs)
        self._thread: ThreadPoolExecutor = spawning_thread()

    async def __aenter__(self) -> SandboxFactory:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._thread.shutdown)

    async def open(self) -> SupervisedSandbox:
        """Start a sandbox, about 50 ms.

        Raises:
            IsolationError: it does not start; says what bwrap complained about and the remedy.
        """
        spawning = asyncio.get_running_loop().run_in_executor(self._thread, self._spawner.spawn)
        process = await _even_if_cancelled(spawning)
        reader, writer = await asyncio.open_connection(sock=process.channel)
        sandbox = SupervisedSandbox(process, reader, writer, self._programs)
        try:
            await sandbox.wait_until_ready(self._limits.start_timeout_s)
        except SandboxLostError as error:
            complaint = process.complaint()
            await sandbox.close()
            raise IsolationError(f"cannot start a sandbox: {error}; {self._spawner.explain(complaint)}") from error
        except BaseException:
            process.kill()
            raise
        return sandbox


async def _even_if_cancelled(spawning: asyncio.Future[SupervisorProcess]) -> SupervisorProcess:
    """The process; if the caller is cancelled meanwhile, the process that comes is killed."""
    try:
        return await asyncio.shield(spawning)
    except asyncio.CancelledError:
        spawning.add_done_callback(lambda done: None if done.exception() else done.result().dispose())
        raise
