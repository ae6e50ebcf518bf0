"""The tool worker: tool calls in, results out.

Duty: run the calls of one toolset, model-written code only in sandboxes, and answer each to where its caller listens.

Invariants: results before offsets, but a harmful call's offset before the call; a known call is answered from memory;
a session is only continued from the state its episode knows; a record that cannot be a call goes to the dead letters;
infrastructure failures are never text; calls that wait for a sandbox do not keep those out that free one.

Crash: sandboxes die with the process; unfinished calls are delivered to the next owner, which opens a sandbox for a
first call and answers ``session_lost`` for others. Rebalance: nothing to do, sessions stay until they are idle. Drain:
intake stops, running calls may finish within ``drain_s``, then the worker leaves.

Rights: to read its calls and to write results. Without those to `control` and `dead-letters` it tells its status, and
what it cannot read, in its log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from aiokafka import TopicPartition

from rollstream.schemas.control import WorkerStatus
from rollstream.schemas.errors import InvalidMessageError, single_errors
from rollstream.schemas.tools import SessionEnd, ToolCall
from rollstream.tool_workers import metrics
from rollstream.tool_workers.blank_sandboxes import stocked
from rollstream.tool_workers.call_handling import CallHandler
from rollstream.tool_workers.call_intake import CallIntake
from rollstream.tool_workers.grading.grade_tool import build_grade_tool
from rollstream.tool_workers.grading.rooms import GradingRooms
from rollstream.tool_workers.mcp_servers.mounting import (
    MCP,
    McpServers,
    chosen_servers,
    mounted_servers,
    secrets_of,
)
from rollstream.tool_workers.provision import Provision
from rollstream.tool_workers.registry import ToolRegistry, load_graders, load_tools
from rollstream.tool_workers.sandbox.isolation_report import IsolationReport
from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.sandbox.self_test import check_isolation
from rollstream.tool_workers.sandbox_pool import SandboxPool
from rollstream.tool_workers.sessions import SessionLedger
from rollstream.tool_workers.settings import ToolWorkerSettings
from rollstream.tool_workers.tool_resources import open_resources
from rollstream.tool_workers.tool_runner import ToolRunner
from rollstream.tool_workers.tool_secrets import Secrets, find_secrets
from rollstream.tool_workers.tool_states import ToolStates
from rollstream.tool_workers.workspaces import Workspaces
from rollstream.transport.clients import require_topics
from rollstream.transport.dead_letters_or_log import DeadLettersOrLog
from rollstream.transport.heartbeat import Heartbeat
from rollstream.transport.metrics import served_metrics
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import Record, decode_record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_watch import watched_topics

logger = logging.getLogger(__name__)

POLL_TIMEOUT_S = 0.5
PROGRAMS_PER_CORE = 4
LONGEST_IDLE_CHECK_S = 30.0


async def run_tool_worker(settings: ToolWorkerSettings, kafka: KafkaSettings, stop: asyncio.Event) -> None:
    """Serve calls until ``stop`` is set and what runs has finished or ``drain_s`` is over.

    Raises:
        SettingsError: tools or topics are not as they must be.
        IsolationError: a tool needs a sandbox and this machine cannot isolate; says what to do.
        TransientError: no broker.
        DataLossError: a topic was deleted or made anew meanwhile.
    """
    try:
        await _serve(settings, kafka, stop)
    except ExceptionGroup as failures:
        raise next(iter(single_errors(failures))) from failures


async def _serve(settings: ToolWorkerSettings, kafka: KafkaSettings, stop: asyncio.Event) -> None:
    registry = load_tools(own_sources(settings))
    topic = kafka.topic(f"tool-calls.{settings.toolset}")
    async with AsyncExitStack() as stack:
        if settings.metrics_port is not None:
            stack.enter_context(served_metrics(settings.metrics_port))
        started = await start_sandboxes(settings, registry, stack)
        await require_topics(kafka, kafka.topic("tool-results"))
        servers = await mount_servers(settings, registry, started, stack)
        states = await stack.enter_async_context(kept_states(settings.state_timeout_s))
        resources = await open_resources(registry.resources, settings, stack)
        provision = Provision(states, resources, secrets_of_tools(registry, settings))
        ledger = SessionLedger(
            new_incarnation=lambda: uuid.uuid4().hex,
            remembered_results=settings.remembered_results,
            remembered_bytes=settings.remembered_bytes,
            on_close=lambda incarnation: _tell_all(incarnation, states, servers),
        )
        sandboxes = workspaces = None
        if started is not None:
            blanks = await stack.enter_async_context(
                stocked(started.factory, wanted=settings.blank_sandboxes, max_age_s=settings.blank_sandbox_s)
            )
            sandboxes = SandboxPool(blanks, max_open=settings.max_sessions, reclaim=reclaimer(ledger, settings))
            stack.push_async_callback(sandboxes.close_all)
            workspaces = Workspaces(
                started.factory,
                roots=settings.workspace_roots,
                max_bytes=settings.max_workspace_bytes,
                kept_bytes=settings.kept_workspace_bytes,
            )
            rooms = GradingRooms(blanks, max_gradings=settings.max_gradings)
            registry.hide(build_grade_tool(rooms, load_graders(own_sources(settings))))
        publisher = await stack.enter_async_context(Publisher(kafka, profile="rpc"))
        dead_letters = DeadLettersOrLog(kafka, role="tool-worker", worker_id=settings.worker_id)
        await stack.enter_async_context(dead_letters)
        runner = ToolRunner(
            worker_id=settings.worker_id, max_output_chars=settings.max_output_chars, provision=provision
        )
        handler = CallHandler(
            registry,
            ledger,
            runner,
            sandboxes,
            publisher,
            workspaces=workspaces,
            max_waiting=settings.max_waiting_calls,
        )
        intake = CallIntake(
            kafka,
            [topic],
            group_id=kafka.group(f"tool-workers.{settings.toolset}"),
            instance_id=settings.instance_id,
        )
        await stack.enter_async_context(intake)
        worker = ToolWorker(settings, kafka, intake, handler, publisher, dead_letters, sandboxes)
        async with watched_topics(kafka, [topic, kafka.topic("tool-results"), kafka.topic("control")]):
            await worker.run(stop)


def _tell_all(incarnation: str, states: ToolStates, servers: McpServers | None) -> None:
    """Everybody who keeps something for a session hears that it is over."""
    states.end_session(incarnation)
    if servers is not None:
        servers.end_session(incarnation)


@asynccontextmanager
async def kept_states(timeout_s: float) -> AsyncGenerator[ToolStates]:
    """States of sessions; what is left is taken down at the end."""
    states = ToolStates(timeout_s=timeout_s)
    async with asyncio.TaskGroup() as group:
        taking_down = group.create_task(states.run())
        try:
            yield states
        finally:
            await states.stop()
            await asyncio.wait([taking_down])
            await states.close()


def secrets_of_tools(registry: ToolRegistry, settings: ToolWorkerSettings) -> dict[str, Secrets]:
    """By tool, for those that declare some. Raises SettingsError when one is missing."""
    declared = {tool.name: tool.secrets for tool in registry if tool.secrets}
    return find_secrets(declared, settings.secrets, os.environ)


def own_sources(settings: ToolWorkerSettings) -> list[str]:
    """The sources of tools that are no servers."""
    return [source for source in settings.tools if not source.startswith(MCP)]


async def mount_servers(
    settings: ToolWorkerSettings, registry: ToolRegistry, started: StartedSandboxes | None, stack: AsyncExitStack
) -> McpServers | None:
    """Add the tools of MCP servers to the registry; None if there are none. Ends with the stack.

    Raises:
        SettingsError: a server is not there, or offers what cannot be offered.
    """
    chosen = chosen_servers(settings.tools, settings.mcp, settings.mcp_allowed_hosts)
    if not chosen:
        return None
    opener = None if started is None else started.factory
    secrets = secrets_of(chosen, settings.secrets, os.environ)
    servers = await stack.enter_async_context(mounted_servers(chosen, opener, secrets))
    registry.add(servers.tools)
    return servers


@dataclass(frozen=True)
class StartedSandboxes:
    """What opens sandboxes, and what the self-test has found (None if they isolate nothing)."""

    factory: SandboxFactory
    report: IsolationReport | None


async def start_sandboxes(
    settings: ToolWorkerSettings, registry: ToolRegistry, stack: AsyncExitStack
) -> StartedSandboxes | None:
    """What opens sandboxes, after the self-test; None if no tool and no server needs one. Ends with the stack.

    Raises:
        IsolationError: see ``check_isolation``.
    """
    chosen = chosen_servers(settings.tools, settings.mcp, settings.mcp_allowed_hosts)
    sandboxed = [tool.name for tool in registry if tool.needs_sandbox]
    sandboxed += [MCP + name for name, server in chosen.items() if server.command]
    if not sandboxed:
        return None
    spawner = build_spawner(
        settings.isolation, settings.sandbox, container=settings.container, kubernetes=settings.kubernetes
    )
    programs = settings.max_running_programs or PROGRAMS_PER_CORE * (os.cpu_count() or 1)
    factory = await stack.enter_async_context(SandboxFactory(spawner, settings.sandbox, max_running_programs=programs))
    if not spawner.is_isolated:
        logger.warning("isolation is off (%s): %s run as ordinary programs", settings.isolation, ", ".join(sandboxed))
        return StartedSandboxes(factory, None)
    report = await check_isolation(factory, settings.sandbox, level=settings.isolation)
    for layer in report.layers:
        metrics.ISOLATION.labels(layer.name).set(layer.holds)
        if not layer.holds:
            logger.warning("%s", layer)
    logger.info("isolation by %s holds: %s", report.level, ", ".join(report.held))
    return StartedSandboxes(factory, report)


def reclaimer(ledger: SessionLedger, settings: ToolWorkerSettings) -> Callable[[], str | None]:
    """Chooses the session that is closed when another needs its place, and forgets it; returns its sandbox."""

    def reclaim() -> str | None:
        idle = ledger.idle_since(time.time() - settings.reclaimable_after_s)
        if not idle:
            return None
        metrics.SESSIONS_ENDED.labels("reclaimed").inc()
        return ledger.close(idle[0])

    return reclaim


class ToolWorker:
    """One running worker."""

    def __init__(
        self,
        settings: ToolWorkerSettings,
        kafka: KafkaSettings,
        intake: CallIntake,
        handler: CallHandler,
        publisher: Publisher,
        dead_letters: DeadLettersOrLog,
        sandboxes: SandboxPool | None,
    ) -> None:
        self._settings = settings
        self._results_topic = kafka.topic("tool-results")
        self._intake = intake
        self._handler = handler
        self._heartbeat = Heartbeat(publisher)
        self._dead_letters = dead_letters
        self._sandboxes = sandboxes
        self._running: set[asyncio.Task[None]] = set()
        self._free = asyncio.Event()
        self._free.set()
        self._finished = 0
        self._state: Literal["running", "draining", "stopped"] = "running"

    async def run(self, stop: asyncio.Event) -> None:
        """Receive, handle, drain."""
        await self._heartbeat.say(self._status())
        try:
            await self._work(stop)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures  # the first one cancelled the others
        self._state = "stopped"
        await self._heartbeat.say(self._status())

    async def _work(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(self._intake.run()),
                group.create_task(self._heartbeat.beat(self._status)),
                group.create_task(self._close_idle_sessions()),
            ]
            while not stop.is_set():
                await self._receive(group)
            self._state = "draining"
            await self._drain()
            for task in background:
                task.cancel()

    async def _receive(self, group: asyncio.TaskGroup) -> None:
        free = self._free_places()
        if free <= 0:
            self._free.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_TIMEOUT_S):
                    await self._free.wait()
            return
        for record in await self._intake.poll(max_records=free, timeout_s=POLL_TIMEOUT_S):
            task = group.create_task(self._handle(record, time.monotonic()))
            self._running.add(task)
            metrics.RUNNING.set(len(self._running))
            task.add_done_callback(self._ended)
        await asyncio.sleep(0)  # lets them come to where they wait for a sandbox

    def _free_places(self) -> int:
        """How many records may be taken on. What waits for a sandbox must not keep out the calls it waits for."""
        waiting = min(self._handler.waiting, self._settings.max_waiting_calls)
        return self._settings.max_running_calls + waiting - len(self._running)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        metrics.RUNNING.set(len(self._running))
        self._free.set()

    async def _handle(self, record: Record, arrived: float) -> None:
        """The record boundary: whatever is wrong with one record stays with it."""
        partition = TopicPartition(record.topic, record.partition)

        try:
            message = decode_record(record, ToolCall, SessionEnd)
            if isinstance(message, SessionEnd):
                await self._handler.end_session(message.session_id)
            else:
                await self._handle_call(message, partition, record.offset, arrived)
        except Exception as error:
            logger.warning(
                "record %s/%d/%d goes to the dead letters: %s", record.topic, record.partition, record.offset, error
            )
            await self._dead_letters.bury(record, error)
        self._finished += 1
        self._intake.finished(partition, record.offset)

    async def _handle_call(self, call: ToolCall, partition: TopicPartition, offset: int, arrived: float) -> None:
        async def commit_first() -> bool:
            left_s = self._handler.deadline(call) - time.time()
            return await self._intake.claim(partition, offset, deadline_s=max(0.0, left_s))

        self._check_requester(call)
        await self._handler.handle(call, commit_first, arrived=arrived)

    def _check_requester(self, call: ToolCall) -> None:
        if call.reply_topic != self._results_topic:
            raise InvalidMessageError(
                f"reply_topic {call.reply_topic!r} is not {self._results_topic!r}: answers go nowhere else",
                field="reply_topic",
            )
        if call.reply_partition < 0:
            raise InvalidMessageError(f"reply_partition is {call.reply_partition}", field="reply_partition")

    async def _drain(self) -> None:
        self._handler.give_waiting_calls_back()
        if self._running:
            logger.info("waiting up to %g s for %d running calls", self._settings.drain_s, len(self._running))
            _, late = await asyncio.wait(self._running, timeout=self._settings.drain_s)
            for task in late:
                task.cancel()

    async def _close_idle_sessions(self) -> None:
        interval_s = min(LONGEST_IDLE_CHECK_S, self._settings.idle_session_s / 4, self._settings.session_wall_s / 4)
        while True:
            await asyncio.sleep(interval_s)
            await self._handler.close_idle_sessions(self._settings.idle_session_s)
            await self._handler.close_old_sessions(self._settings.session_wall_s)

    def _status(self) -> WorkerStatus:
        metrics.SESSIONS.set(len(self._sandboxes or ()))
        metrics.CALLS_WAITING.set(self._handler.waiting)
        statuses = {f"calls_{status}": float(count) for status, count in self._handler.statuses.items()}
        return WorkerStatus(
            worker_id=self._settings.worker_id,
            role="tool-worker",
            state=self._state,
            running=len(self._running),
            finished=self._finished,
            updated_at=time.time(),
            stats={
                "sessions": float(len(self._sandboxes or ())),
                "calls_waiting": float(self._handler.waiting),
                **statuses,
            },
        )
