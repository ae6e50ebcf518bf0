"""From one decoded call to its published result.

Invariants: a record is finished only when its answer is acknowledged (results before offsets); a call that runs is
joined, not run again; every requester of a call gets its answer; what happens to a sandbox concerns the session that
runs in it and no later one of the same name.

Full house: calls wait for a sandbox in the order they came. Whoever asks again meanwhile is answered ``busy`` and
thereby puts the call's deadline off. A call that is given up before it has begun leaves no trace: it may come again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from rollstream.schemas.errors import InvalidMessageError, IsolationError, TransientError
from rollstream.schemas.tools import OBSERVABLE_STATUSES, ToolCall, ToolResult
from rollstream.tool_workers import metrics
from rollstream.tool_workers.arguments import InvalidArgumentsError
from rollstream.tool_workers.functions import Tool, ToolOutput
from rollstream.tool_workers.registry import ToolRegistry
from rollstream.tool_workers.running_calls import NotBegunError, RunningCall
from rollstream.tool_workers.sandbox_pool import ClosableSandbox, Preparation, SandboxPool
from rollstream.tool_workers.sessions import Join, Refuse, Replay, Run, SessionLedger
from rollstream.tool_workers.tool_runner import ToolRunner
from rollstream.tool_workers.workspaces import Workspaces

logger = logging.getLogger(__name__)

LATE_ANSWER_S = 60.0
"""How long after its deadline an answer is still offered to the broker."""
MAX_NAME_CHARS = 100
MAX_WAITING_CALLS = 1024
HOUSE_IS_FULL = "all sandboxes are taken"


class Publishing(Protocol):
    """Sends answers; a Publisher does."""

    async def publish(self, message: ToolResult, *, key: str, topic: str, partition: int, deadline_s: float) -> object:
        """Return when the broker has acknowledged it. Raises TransientError."""
        ...


CommitFirst = Callable[[], Awaitable[bool]]
"""Makes sure the record is never delivered again; False: it cannot."""


class CallHandler:
    """Handles calls beside one another.

    Args:
        registry: the tools.
        ledger: decides.
        runner: runs.
        sandboxes: None if no tool needs one.
        workspaces: makes what sessions start with; None: they all start empty.
        publisher: sends the answers.
        max_waiting: calls that may wait for a sandbox; further ones are given back to their callers as ``busy``, but
            for harmful ones, whose callers could not send them again.
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
        workspaces: Workspaces | None = None,
        max_waiting: int = MAX_WAITING_CALLS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._workspaces = workspaces
        self._max_waiting = max_waiting
        self._registry = registry
        self._ledger = ledger
        self._runner = runner
        self._sandboxes = sandboxes
        self._publisher = publisher
        self._clock = clock
        self._running: dict[str, RunningCall] = {}
        self.statuses: Counter[str] = Counter()
        self.waiting = 0
        """Calls that wait for a sandbox now."""

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

    def deadline(self, call: ToolCall) -> float:
        """Of the call as its caller sees it now: while it waits for a sandbox, copies of it put it off."""
        running = self._running.get(call.call_id)
        return call.deadline if running is None else running.call.deadline

    async def close_idle_sessions(self, idle_s: float) -> None:
        """Close sessions without calls for so long."""
        for session_id in self._ledger.idle_since(self._clock() - idle_s):
            await self._close(self._ledger.close(session_id), "idle")

    async def close_old_sessions(self, age_s: float) -> None:
        """Close sessions opened so long ago, whatever runs in them."""
        for session_id in self._ledger.opened_before(self._clock() - age_s):
            logger.warning("session %s is closed, it is older than %g s", session_id, age_s)
            await self._close(self._ledger.close(session_id), "old")

    async def end_session(self, session_id: str) -> None:
        """The session's attempt is over: close it at once, or when the calls that run in it have ended.

        Harmless when late, repeated, or for a session that is not here.
        """
        closed = self._ledger.end(session_id)
        await self._close(closed, "over")
        if closed is None and session_id in self._ledger:
            self._give_up_waiting(lambda running: running.call.session_id == session_id)

    def give_waiting_calls_back(self) -> None:
        """Their callers send them again. Harmful ones stay: for them that would be too late."""
        self._give_up_waiting(lambda running: not running.admission.commits_first)

    def _give_up_waiting(self, concerns: Callable[[RunningCall], bool]) -> None:
        for running in self._running.values():
            if concerns(running):
                running.give_up_waiting()

    async def _decide(
        self, tool: Tool, call: ToolCall, arguments: dict[str, Any], commit_first: CommitFirst, arrived: float
    ) -> None:
        admission = self._ledger.admit(call, now=self._clock(), is_idempotent=tool.is_idempotent)
        if isinstance(admission, Replay):
            await self._answer(call, admission.result)
        elif isinstance(admission, Refuse):
            await self._answer(call, self._runner.result(call, ToolOutput(admission.reason, admission.status)))
        elif isinstance(admission, Join):
            await self._join(call)
        else:
            await self._run_and_answer(tool, call, arguments, admission, commit_first, arrived)

    async def _join(self, call: ToolCall) -> None:
        # Same key, same partition, higher offset: until the running call's record is finished this one cannot be
        # committed past, so it needs no waiting of its own.
        running = self._running[call.call_id]
        running.requesters.add((call.reply_topic, call.reply_partition))
        if running.waiting is not None:
            running.wait_until(call.deadline, self._clock())
            await self._answer(call, self._runner.result(call, ToolOutput(HOUSE_IS_FULL, "busy")))

    async def _run_and_answer(
        self,
        tool: Tool,
        call: ToolCall,
        arguments: dict[str, Any],
        admission: Run,
        commit_first: CommitFirst,
        arrived: float,
    ) -> None:
        running = RunningCall(call, admission, {(call.reply_topic, call.reply_partition)})
        self._running[call.call_id] = running
        try:
            result = await self._run(tool, running, arguments, commit_first, arrived)
        except Exception:
            await self._give_up(call, admission)
            raise
        finally:
            if self._running.get(call.call_id) is running:
                del self._running[call.call_id]
        if result is not None:
            await self._answer_all(running.call, result, running.requesters)
        if call.session_id is not None:
            await self._close(self._ledger.close_if_over(call.session_id), "over")

    async def _run(
        self, tool: Tool, running: RunningCall, arguments: dict[str, Any], commit_first: CommitFirst, arrived: float
    ) -> ToolResult | None:
        """None: it must not be run here, and is not answered."""
        call, admission = running.call, running.admission
        try:
            sandbox = await self._sandbox(tool, running)
        except NotBegunError as error:
            await self._withdraw(call, admission)
            log = logger.debug if error.status == "busy" else logger.warning
            log("call %s of %s has not begun, %s: %s", call.call_id, tool.name, error.status, error)
            output = ToolOutput(str(error), error.status)
            return self._runner.result(call, output, queue_s=time.monotonic() - arrived)
        try:
            if admission.commits_first and not await commit_first():
                await self._withdraw(call, admission)
                return None
            if call.session_id is not None and not self._ledger.is_open(call.session_id, admission.incarnation):
                # Nobody is told of its end a second time: what it would leave behind would stay.
                return self._runner.result(call, ToolOutput("its session was closed before the call", "session_lost"))
            queue_s = time.monotonic() - arrived
            result = await self._runner.run(
                tool, running.call, arguments, sandbox, queue_s=queue_s, incarnation=admission.incarnation
            )
        finally:
            if sandbox is not None and admission.incarnation is None and self._sandboxes is not None:
                await self._sandboxes.discard(sandbox)
        metrics.RUN_SECONDS.labels(tool.name).observe(result.run_s)
        metrics.QUEUE_SECONDS.observe(result.queue_s)
        if result.status in OBSERVABLE_STATUSES:
            return self._ledger.complete(call, admission, result, now=self._clock())
        logger.warning("call %s of %s ended as %s: %s", call.call_id, tool.name, result.status, result.content)
        await self._give_up(call, admission)
        return result

    async def _sandbox(self, tool: Tool, running: RunningCall) -> ClosableSandbox | None:
        """What the call runs in; None: its tool needs none. Waits until the latest deadline of its copies.

        Raises:
            NotBegunError: there is none for it.
        """
        if not tool.needs_sandbox:
            return None
        pool, call, admission = self._sandboxes, running.call, running.admission
        assert pool is not None, "a worker with such tools has a pool"
        incarnation = admission.incarnation
        if call.session_id is not None and not self._ledger.is_open(call.session_id, incarnation):
            raise NotBegunError("session_lost", f"session {call.session_id!r} was closed before the call")
        may_wait = self.waiting < self._max_waiting or admission.commits_first
        if not may_wait and pool.is_full_for(incarnation):
            raise NotBegunError("busy", HOUSE_IS_FULL)
        self.waiting += 1
        try:
            async with asyncio.timeout(max(0.0, call.deadline - self._clock())) as running.waiting:
                if incarnation is None:
                    return await pool.for_one_call()
                return await pool.of_session(incarnation, self._preparation(call))
        except TimeoutError as error:
            raise NotBegunError("busy", HOUSE_IS_FULL) from error
        except (IsolationError, TransientError) as error:
            raise NotBegunError("worker_error", str(error)) from error
        finally:
            running.waiting = None
            self.waiting -= 1

    def _preparation(self, call: ToolCall) -> Preparation | None:
        """What a session's sandbox needs before its first call."""
        spec, workspaces = call.workspace, self._workspaces
        if spec is msgspec.UNSET:
            return None
        if workspaces is None:
            raise NotBegunError("worker_error", f"this worker makes no workspaces, the task needs {spec.uri!r}")
        return lambda sandbox: workspaces.provision(sandbox, spec)

    async def _withdraw(self, call: ToolCall, admission: Run) -> None:
        unused = self._ledger.withdraw(call, admission)
        if unused is not None and self._sandboxes is not None:
            await self._sandboxes.close(unused)

    async def _give_up(self, call: ToolCall, admission: Run) -> None:
        """The call has no result worth keeping; whatever it did to its session, nobody continues from that."""
        if call.session_id is None:
            self._ledger.withdraw(call, admission)
        else:
            await self._close(self._ledger.close(call.session_id, admission.incarnation), "lost")

    async def _close(self, incarnation: str | None, cause: metrics.EndOfSession) -> None:
        """End the sandbox of a session the ledger has forgotten; None: there is none."""
        if incarnation is None:
            return
        metrics.SESSIONS_ENDED.labels(cause).inc()
        if self._sandboxes is not None:
            await self._sandboxes.close(incarnation)

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
