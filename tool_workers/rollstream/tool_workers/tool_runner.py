"""Runs one call of one tool and turns whatever happens into a result."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from rollstream.schemas.errors import IsolationError, TransientError
from rollstream.schemas.tools import RESERVED_PREFIX, ToolCall, ToolResult, ToolStatus
from rollstream.tool_workers import metrics
from rollstream.tool_workers.functions import SessionKey, TimeLimit, Tool, ToolError, ToolOutput
from rollstream.tool_workers.output_text import cap, clean
from rollstream.tool_workers.provision import Provision
from rollstream.tool_workers.sandbox.replies import SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import Sandbox
from rollstream.tool_workers.signals import bounded

logger = logging.getLogger(__name__)

MAX_THREADS = 64
"""Synchronous tools running at once; a thread that never ends keeps its place."""


class ToolRunner:
    """Runs calls. Its text is cleaned and capped; only what the tool or the model did becomes text for the model.

    Answers that only rollout workers read are bounded by who gives them, and whole.
    """

    def __init__(self, *, worker_id: str, max_output_chars: int, provision: Provision | None = None) -> None:
        self._provision = provision or Provision()
        self._redact = self._provision.redaction
        self._worker_id = worker_id
        self._max_output_chars = max_output_chars
        self._threads = DaemonThreads(MAX_THREADS)

    async def run(
        self,
        tool: Tool,
        call: ToolCall,
        arguments: dict[str, Any],
        sandbox: Sandbox | None,
        *,
        queue_s: float,
        incarnation: str | None = None,
    ) -> ToolResult:
        """Run a call within its time. Never raises for what the tool does. ``incarnation``: of its session."""
        started = time.monotonic()
        timeout_s = min(call.timeout_s, tool.timeout_s)
        try:
            injected = _injected(tool, sandbox, timeout_s, incarnation)
            injected |= await self._provision.of(tool, call, incarnation)
        except TransientError as error:  # nothing of the tool has run, so a harmful one has done no harm
            output = ToolOutput(str(error), "worker_error")
            return self.result(call, output, run_s=time.monotonic() - started, queue_s=queue_s)
        try:
            output = await self._run(tool, call, arguments | injected, timeout_s)
        except SandboxLostError as error:
            output = _unfinished(tool, error, "worker_error" if call.session_id is None else "session_lost")
        except (TransientError, IsolationError) as error:
            output = _unfinished(tool, error, "worker_error")
        except ToolError as error:
            output = ToolOutput(f"Error: {error}", "error")
        except Exception as error:
            logger.info("tool %s raised in call %s", tool.name, call.call_id, exc_info=True)
            output = ToolOutput(f"Error: {type(error).__name__}: {error}", "error")
        return self.result(call, output, run_s=time.monotonic() - started, queue_s=queue_s)

    def result(self, call: ToolCall, output: ToolOutput, *, run_s: float = 0.0, queue_s: float = 0.0) -> ToolResult:
        """The result of a call, its text made fit to be read."""
        signals = bounded(output.metrics)
        for name, value in signals.items():
            metrics.SIGNALS.labels(name).inc(value)
        # Once more after cleaning: what was removed may have stood in the middle of a secret.
        text = self._redact(clean(self._redact(output.content)))
        is_whole = output.status == "ok" and call.tool.startswith(RESERVED_PREFIX)
        content, is_truncated = (text, False) if is_whole else cap(text, self._max_output_chars)
        return ToolResult(
            call_id=call.call_id,
            session_id=call.session_id,
            status=output.status,
            content=content,
            is_truncated=is_truncated,
            run_s=run_s,
            queue_s=queue_s,
            worker_id=self._worker_id,
            metrics=signals,
        )

    async def _run(self, tool: Tool, call: ToolCall, arguments: dict[str, Any], timeout_s: float) -> ToolOutput:
        """A sandbox keeps the time itself, waiting for its turn excluded; there only the deadline is ours."""
        until_deadline_s = max(0.0, call.deadline - time.time())
        limit_s = until_deadline_s if tool.needs_sandbox else timeout_s
        scope = asyncio.timeout(limit_s)
        try:
            async with scope:
                return _as_output(await self._value(tool, arguments))
        except TimeoutError as error:
            if not scope.expired():
                raise
            if tool.needs_sandbox:
                raise TransientError(f"call {call.call_id!r} did not get its turn before its deadline") from error
            return ToolOutput(f"Error: timed out after {timeout_s:g} s", "timeout")

    async def _value(self, tool: Tool, arguments: dict[str, Any]) -> Any:
        if inspect.iscoroutinefunction(tool.function):
            return await tool.function(**arguments)
        return await self._threads.run(lambda: tool.function(**arguments))


class DaemonThreads:
    """Threads that do not keep the process alive: a synchronous function cannot be stopped, only be left behind."""

    def __init__(self, max_threads: int) -> None:
        self._places = asyncio.Semaphore(max_threads)

    async def run(self, function: Callable[[], Any]) -> Any:
        """The function's value; if the caller is cancelled, the thread goes on by itself and keeps its place."""
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Any] = loop.create_future()

        def settle(value: Any, error: Exception | None) -> None:
            self._places.release()
            if outcome.cancelled():
                return
            if error is None:
                outcome.set_result(value)
            else:
                outcome.set_exception(error)

        def work() -> None:
            value, failure = None, None
            try:
                value = function()
            except StopIteration as error:
                failure = RuntimeError(f"the tool raised StopIteration: {error}")  # a future refuses it
            except Exception as error:
                failure = error
            except SystemExit as stop:
                failure = ToolError(f"the tool called exit({stop.code!r})")
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, value, failure)

        threading.Thread(target=work, name="tool", daemon=True).start()
        return await outcome


def _injected(tool: Tool, sandbox: Sandbox | None, timeout_s: float, incarnation: str | None) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if tool.sandbox_parameter is not None:
        given[tool.sandbox_parameter] = sandbox
    if tool.time_limit_parameter is not None:
        given[tool.time_limit_parameter] = TimeLimit(timeout_s)
    if tool.session_key_parameter is not None:
        given[tool.session_key_parameter] = SessionKey(incarnation)
    return given


def _unfinished(tool: Tool, error: Exception, status: ToolStatus) -> ToolOutput:
    """It has begun and infrastructure failed: nobody knows how far a harmful call has come."""
    if tool.is_idempotent:
        return ToolOutput(str(error), status)
    return ToolOutput(f"{tool.name} may have done what it was asked for: {error}", "outcome_unknown")


def _as_output(value: Any) -> ToolOutput:
    if isinstance(value, ToolOutput):
        return value
    if isinstance(value, str):
        return ToolOutput(value)
    return ToolOutput("(no output)" if value is None else msgspec.json.encode(value).decode())
