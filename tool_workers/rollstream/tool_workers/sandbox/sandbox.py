"""One sandbox: programs run in it one after another, and its `/workspace` lasts until it is closed."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

import msgspec

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.bridge import Bridge, SupervisedBridge
from rollstream.tool_workers.sandbox.replies import (
    MAX_FRAME_BYTES,
    Execution,
    Ready,
    SandboxLostError,
    frame,
    frame_size,
    parse_execution,
    parse_ready,
)
from rollstream.tool_workers.sandbox.spawning import Enforcement, Spawner, SupervisorProcess
from rollstream.tool_workers.settings import SandboxSettings

GRACE_S = 25.0
"""Longer than the supervisor takes at most to end what a call has started."""
"""Time a supervisor gets beyond a program's time limit to kill everything and answer."""
BASH = "/bin/bash"
LONG_LIVED = Literal["shell", "interpreter"]


class Sandbox(Protocol):
    """What a tool can do in the sandbox of its session; take a parameter of this type to be given one.

    Everything raises SandboxLostError when the sandbox has died. All sizes in bytes, all times in seconds.
    """

    async def bash(self, command: str, *, timeout_s: float) -> Execution:
        """Run a command line in a fresh bash, in `/workspace`."""
        ...

    async def python(self, source: str, *, timeout_s: float) -> Execution:
        """Run source text in a fresh Python, in `/workspace`."""
        ...

    async def run(
        self, *arguments: str, timeout_s: float, stdin: bytes = b"", output_bytes: int | None = None
    ) -> Execution:
        """Run a program by its absolute path, in `/workspace`. ``output_bytes``: keep so much of its output."""
        ...

    async def shell(self, command: str, *, timeout_s: float) -> Execution:
        """Run a command line in the session's long-lived bash: folder, variables and functions are kept."""
        ...

    async def interpreter(self, source: str, *, timeout_s: float) -> Execution:
        """Run source text in the session's long-lived Python: variables are kept, a last expression is shown."""
        ...

    async def restart(self, kind: LONG_LIVED) -> None:
        """End a long-lived process; the next call has a fresh one."""
        ...

    async def operate(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        output_bytes: int | None = None,
    ) -> Execution:
        """Run ``run(arguments, stdin)`` of one of our own modules ``sandbox/inside/<operation>.py``."""
        ...

    async def bridge(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Bridge:
        """Start a long-lived program whose streams are ours; the last thing this sandbox does.

        ``environment`` comes on top of that of all programs. It ends when the sandbox is closed.
        """
        ...

    async def host(self, operation: str, arguments: Mapping[str, Any]) -> Bridge:
        """Like ``bridge``, with one of our own modules ``sandbox/inside/<operation>.py`` as the program."""
        ...


class SupervisedSandbox:
    """A sandbox behind its supervisor's channel.

    One program at a time; callers wait for one another. A time-out of the supervisor, a broken reply or a cancelled
    caller leaves it in an unknown state: it is killed, and every later call raises SandboxLostError.
    """

    def __init__(
        self,
        process: SupervisorProcess,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        programs: asyncio.Semaphore,
        limits: SandboxSettings,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._programs = programs
        self._limits = limits
        self._one_at_a_time = asyncio.Lock()
        self._is_alive = True
        self._is_closed = False
        self._cpu_s = 0.0
        self.denied_before = 0
        """System calls refused in it so far."""

    @property
    def is_alive(self) -> bool:
        """Whether it may still answer."""
        return self._is_alive and not self._reader.at_eof()

    async def bash(self, command: str, *, timeout_s: float) -> Execution:
        """Run a command line."""
        return await self._execute({"argv": [BASH, "-c", command]}, timeout_s)

    async def python(self, source: str, *, timeout_s: float) -> Execution:
        """Run source text; the interpreter is forked from the supervisor's, so it starts in milliseconds."""
        return await self._execute({"python": source}, timeout_s)

    async def run(
        self, *arguments: str, timeout_s: float, stdin: bytes = b"", output_bytes: int | None = None
    ) -> Execution:
        """Run a program."""
        return await self._execute({"argv": arguments}, timeout_s, stdin=stdin, output_bytes=output_bytes)

    async def shell(self, command: str, *, timeout_s: float) -> Execution:
        """Run a command line in the long-lived bash. Raises ValueError if it holds a NUL."""
        _check_text(command)
        return await self._execute({"shell": command}, timeout_s)

    async def interpreter(self, source: str, *, timeout_s: float) -> Execution:
        """Run source text in the long-lived Python. Raises ValueError if it holds a NUL."""
        _check_text(source)
        return await self._execute({"interpreter": source}, timeout_s)

    async def restart(self, kind: LONG_LIVED) -> None:
        """End a long-lived process."""
        await self._execute({"restart": kind}, GRACE_S)

    async def operate(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        output_bytes: int | None = None,
    ) -> Execution:
        """Run one of our own operations."""
        request = {"operation": operation, "arguments": dict(arguments)}
        return await self._execute(request, timeout_s, stdin=stdin, output_bytes=output_bytes)

    async def bridge(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Bridge:
        """Give the sandbox to one program."""
        return await self._give_to({"argv": arguments, "environment": dict(environment or {})}, arguments[0])

    async def host(self, operation: str, arguments: Mapping[str, Any]) -> Bridge:
        """Give the sandbox to one of our own programs."""
        return await self._give_to({"operation": operation, "arguments": dict(arguments)}, operation)

    async def _give_to(self, program: dict[str, Any], name: str) -> Bridge:
        execution = await self._execute({"bridge": program}, GRACE_S)
        if execution.cause is not None:
            raise SandboxLostError(f"{name!r} cannot be started in the sandbox: {execution.output}")
        self._is_alive = False
        return SupervisedBridge(self._process, self._reader, self._writer)

    async def _execute(
        self, request: dict[str, Any], timeout_s: float, *, stdin: bytes = b"", output_bytes: int | None = None
    ) -> Execution:
        async with self._one_at_a_time, self._programs:
            if not self._is_alive:
                raise SandboxLostError("the sandbox has died before this call")
            if self._spent_cpu_s() >= self._limits.session_cpu_s:
                return self._exhausted()
            body = self._body(request, timeout_s, stdin, output_bytes)
            oom_kills = self._process.facts.oom_kills()
            self._is_alive = False
            try:
                async with asyncio.timeout(timeout_s + GRACE_S):
                    self._writer.write(body)
                    await self._writer.drain()
                    execution = parse_execution(await self._receive(_max_reply_bytes(output_bytes)))
                self._is_alive = True
            except TimeoutError as error:
                raise SandboxLostError(f"the supervisor did not answer within {GRACE_S} s of the time limit") from error
            except (OSError, EOFError) as error:
                raise SandboxLostError(f"the supervisor is gone: {self._process.complaint() or repr(error)}") from error
            finally:
                if not self._is_alive:
                    self._process.kill()
            self._cpu_s += execution.cpu_s
            self.denied_before += sum(execution.denied.values())
            if execution.cause is None and oom_kills != self._process.facts.oom_kills():
                return msgspec.structs.replace(execution, cause="memory")
            return execution

    def _body(self, request: dict[str, Any], timeout_s: float, stdin: bytes, output_bytes: int | None) -> bytes:
        request["timeout_s"] = timeout_s
        if stdin:
            request["stdin"] = base64.b64encode(stdin).decode()
        if output_bytes is not None:
            request["output_bytes"] = output_bytes
        return frame(msgspec.json.encode(request))

    def _spent_cpu_s(self) -> float:
        """What the kernel says counts; the supervisor's word, where there is no control group."""
        told = self._process.facts.cpu_s()
        return self._cpu_s if told is None else told

    def _exhausted(self) -> Execution:
        return Execution(exit_code=None, cause="cpu", head="", tail="", total_bytes=0, run_s=0.0)

    async def wait_until_ready(self, timeout_s: float) -> Ready:
        """Wait for the supervisor's first word.

        Raises:
            SandboxLostError: it said something else, or nothing in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return parse_ready(await self._receive(MAX_FRAME_BYTES))
        except (TimeoutError, OSError, EOFError) as error:
            raise SandboxLostError(f"no supervisor came up: {self._process.complaint() or repr(error)}") from error

    async def _receive(self, max_bytes: int) -> bytes:
        return await self._reader.readexactly(frame_size(await self._reader.readexactly(4), max_bytes))

    async def close(self) -> None:
        """Kill everything in it and free it. Safe to repeat."""
        self._is_alive = False
        if self._is_closed:
            return
        self._is_closed = True
        self._writer.close()
        await asyncio.to_thread(self._process.dispose)


class SandboxFactory:
    """Opens sandboxes. An async context manager; close all sandboxes before leaving it.

    All are started by one long-lived thread: ``--die-with-parent`` and its like follow the thread that started a
    process, so a pool's short-lived thread would take its sandboxes with it.
    """

    def __init__(self, spawner: Spawner, limits: SandboxSettings, *, max_running_programs: int) -> None:
        self._spawner = spawner
        self._limits = limits
        self._programs = asyncio.Semaphore(max_running_programs)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-spawner")
        self.counts_denials = False
        """Whether the sandboxes opened last count what they refuse."""

    @property
    def enforcement(self) -> Enforcement:
        """What holds memory and processes; known once a sandbox was opened."""
        return self._spawner.enforcement

    async def __aenter__(self) -> SandboxFactory:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._thread.shutdown()
        self._spawner.close()

    async def open(self) -> SupervisedSandbox:
        """Start a sandbox, about 50 ms.

        Raises:
            IsolationError: it does not start; says what bwrap complained about and the remedy.
        """
        spawning = asyncio.get_running_loop().run_in_executor(self._thread, self._spawner.spawn)
        process = await _even_if_cancelled(spawning)
        reader, writer = await asyncio.open_connection(sock=process.channel)
        sandbox = SupervisedSandbox(process, reader, writer, self._programs, self._limits)
        try:
            ready = await sandbox.wait_until_ready(self._limits.start_timeout_s)
            self.counts_denials = ready.counts_denials
        except SandboxLostError as error:
            complaint = process.complaint()
            await sandbox.close()
            raise IsolationError(f"cannot start a sandbox: {error}; {self._spawner.explain(complaint)}") from error
        except BaseException:
            process.kill()
            await asyncio.shield(sandbox.close())
            raise
        return sandbox


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ValueError("what a long-lived program is to run holds a NUL, which is how it is told that a call ends")


def _max_reply_bytes(output_bytes: int | None) -> int:
    """In base64, and what comes with it."""
    return MAX_FRAME_BYTES if output_bytes is None else MAX_FRAME_BYTES + 2 * output_bytes


async def _even_if_cancelled(spawning: asyncio.Future[SupervisorProcess]) -> SupervisorProcess:
    """The process; if the caller is cancelled meanwhile, the process that comes is disposed of."""
    try:
        return await asyncio.shield(spawning)
    except asyncio.CancelledError:
        spawning.add_done_callback(lambda done: None if done.exception() else done.result().dispose())
        raise
