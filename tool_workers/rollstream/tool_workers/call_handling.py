"""From one decoded call to its published result.

Invariants: a record is finished only when its answer is acknowledged (results before offsets); a call that runs is
joined, not run again; every requester of a call gets its answer; what happens to a sandbox concerns the session that
runs in it and no later one of the same name.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from rollstream.schemas.errors import InvalidMessageError, IsolationError, TransientError
from rollstream.schemas.tools import OBSERVABLE_STATUSES, ToolCall, ToolResult
from rollstream.tool_workers import metrics
from rollstream.tool_workers.functions import InvalidArgumentsError, Tool, ToolOutput
from rollstream.tool_workers.registry import ToolRegistry
from rollstream.tool_workers.sandbox_pool import SandboxPool
from rollstream.tool_workers.sessions import Join, Refuse, Replay, Run, SessionLedger
from rollstream.tool_workers.tool_runner import ToolRunner

logger = logging.getLogger(__name__)

LATE_ANSWER_S = 60.0
"""How long after its deadline an answer is still offered to the broker."""
MAX_NAME_CHARS = 100


class Publishing(Protocol):
    """Sends answers; a Publisher does."""

    async def publish(self, message: ToolResult, *, key: str, topic: str, partition: int, deadline_s: float) -> object:
        """Return when the broker has acknowledged it. Raises TransientError."""
        ...


CommitFirst = Callable[[], Awaitable[bool]]
"""Makes sure the record is never delivered again; False: it cannot."""


@dataclass
class _Running:
    """A running call: the (topic, partition) of everybody who wants its answer."""

    requesters: set[tuple[str, int]]


class CallHandler:
    """Handles calls beside one another.

    Args:
        registry: the tools.
        ledger: decides.
        runner: runs.
        sandboxes: None if no tool needs one.
        publisher: sends the answers.
        clock: Unix seconds.
    """

    def __init__(
        self,
        registry: ToolRegistry,
        ledger: SessionLedger,
        runner: ToolRunner,
        sandboxes: SandboxPool | None,
        publisher: Publishing,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._ledger = ledger
        self._runner = runner
        self._sandboxes = sandboxes
        self._publisher = publisher
        self._clock = clock
        self._running: dict[str, _Running] = {}
        self.statuses: Counter[str] = Counter()

    async def handle(self, call: ToolCall, commit_first: CommitFirst, *, arrived: float) -> None:
        """Return when the answer is acknowledged, or when nobody waits for it any more.

        Args:
            call: the call.
            commit_first: for tools that must not run twice.
            arrived: `time.monotonic()` when the record was fetched.
        """
        tool = self._registry.get(call.tool)
        if tool is None:
            shown = ", ".join(self._registry.names)
            text = f"Error: unknown tool {call.tool[:MAX_NAME_CHARS]!r}; the tools are: {shown}"
            await self._answer(call, self._runner.result(call, ToolOutput(text, "unknown_tool")))
            return
        try:
            arguments = tool.parse(call.arguments)
        except InvalidArgumentsError as error:
            text = f"Error: invalid arguments for {tool.name}: {error}"
            await self._answer(call, self._runner.result(call, ToolOutput(text, "invalid_arguments")))
            return
        if not tool.is_stateful and call.session_id is not None:
            call = msgspec.structs.replace(call, session_id=None)
        await self._decide(tool, call, arguments, commit_first, arrived)

    async def close_idle_sessions(self, idle_s: float) -> None:
        """Close sessions without calls for so long."""
        for session_id in self._ledger.idle_since(self._clock() - idle_s):
            await self._close(session_id, None)

    async def _decide(
        self, tool: Tool, call: ToolCall, arguments: dict[str, Any], commit_first: CommitFirst, arrived: float
    ) -> None:
        admission = self._ledger.admit(call, now=self._clock(), is_idempotent=tool.is_idempotent)
        if isinstance(admission, Replay):
            await self._answer(call, admission.result)
        elif isinstance(admission, Refuse):
            await self._answer(call, self._runner.result(call, ToolOutput(admission.reason, admission.status)))
        elif isinstance(admission, Join):
            # Same key, same partition, higher offset: until the running call's record is finished this one cannot be
            # committed past, so it needs no waiting of its own.
            self._running[call.call_id].requesters.add((call.reply_topic, call.reply_partition))
        else:
            await self._run_and_answer(tool, call, arguments, admission, commit_first, arrived)

    async def _run_and_answer(
        self,
        tool: Tool,
        call: ToolCall,
        arguments: dict[str, Any],
        admission: Run,
        commit_first: CommitFirst,
        arrived: float,
    ) -> None:
        running = self._running[call.call_id] = _Running({(call.reply_topic, call.reply_partition)})
        try:
            if admission.commits_first and not await commit_first():
                self._ledger.withdraw(call, admission)
                return
            result = await self._run(tool, call, arguments, admission, time.monotonic() - arrived)
        except Exception:
            await self._give_up(call, admission)
            raise
        finally:
            if self._running.get(call.call_id) is running:
                del self._running[call.call_id]
        await self._answer_all(call, result, running.requesters)

    async def _run(
        self, tool: Tool, call: ToolCall, arguments: dict[str, Any], admission: Run, queue_s: float
    ) -> ToolResult:
        if not tool.needs_sandbox:
            result = await self._runner.run(tool, call, arguments, None, queue_s=queue_s)
        else:
            result = await self._run_in_sandbox(tool, call, arguments, admission, queue_s)
        metrics.RUN_SECONDS.labels(tool.name).observe(result.run_s)
        metrics.QUEUE_SECONDS.observe(result.queue_s)
        if result.status in OBSERVABLE_STATUSES:
            return self._ledger.complete(call, admission, result, now=self._clock())
        logger.warning("call %s of %s ended as %s: %s", call.call_id, tool.name, result.status, result.content)
        await self._give_up(call, admission)
        return result

    async def _run_in_sandbox(
        self, tool: Tool, call: ToolCall, arguments: dict[str, Any], admission: Run, queue_s: float
    ) -> ToolResult:
        pool, incarnation = self._sandboxes, admission.incarnation
        assert pool is not None, "a worker with such tools has a pool"
        if call.session_id is not None and not self._ledger.is_open(call.session_id, incarnation):
            lost = ToolOutput(f"session {call.session_id!r} was closed before the call", "session_lost")
            return self._runner.result(call, lost, queue_s=queue_s)
        try:
            async with asyncio.timeout(max(0.0, call.deadline - self._clock())):
                sandbox = await (pool.for_one_call() if incarnation is None else pool.of_session(incarnation))
        except TimeoutError:
            return self._runner.result(call, ToolOutput("all sandboxes are taken", "worker_error"), queue_s=queue_s)
        except IsolationError as error:
            return self._runner.result(call, ToolOutput(str(error), "worker_error"), queue_s=queue_s)
        try:
            return await self._runner.run(tool, call, arguments, sandbox, queue_s=queue_s)
        finally:
            if incarnation is None:
                await pool.discard(sandbox)

    async def _give_up(self, call: ToolCall, admission: Run) -> None:
        """The call has no result worth keeping; whatever it did to its session, nobody continues from that."""
        if call.session_id is None:
            self._ledger.withdraw(call, admission)
        else:
            await self._close(call.session_id, admission.incarnation)

    async def _close(self, session_id: str, incarnation: str | None) -> None:
        closed = self._ledger.close(session_id, incarnation)
        if closed is not None and self._sandboxes is not None:
            await self._sandboxes.close(closed)

    async def _answer_all(self, call: ToolCall, result: ToolResult, requesters: set[tuple[str, int]]) -> None:
        """One requester that cannot be answered keeps no other waiting."""
        refused: list[InvalidMessageError] = []

        async def answer(topic: str, partition: int) -> None:
            try:
                asked = msgspec.structs.replace(call, reply_topic=topic, reply_partition=partition)
                await self._answer(asked, result)
            except InvalidMessageError as error:
                refused.append(error)

        async with asyncio.TaskGroup() as group:
            for topic, partition in requesters:
                group.create_task(answer(topic, partition))
        if refused:
            raise refused[0]

    async def _answer(self, call: ToolCall, result: ToolResult) -> None:
        self.statuses[result.status] += 1
        known = call.tool if self._registry.get(call.tool) else metrics.UNKNOWN_TOOL
        metrics.ANSWERS.labels(known, result.status).inc()
        remaining_s = max(0.0, call.deadline - self._clock()) + LATE_ANSWER_S
        try:
            await self._publisher.publish(
                result, key=call.call_id, topic=call.reply_topic, partition=call.reply_partition, deadline_s=remaining_s
            )
        except TransientError as error:
            logger.warning("answer to call %s was not published, its caller has given up: %s", call.call_id, error)
