"""A tool call through Kafka and back: a real tool worker in a process of its own, a tool that does nothing.

Idle: one call at a time. Throughput: as many calls as a busy rollout worker has in flight, from one caller. A caller's
own limit is what it could do with a core of its own, because here caller, tool workers and broker share the machine.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from figures import Figure, figure
from workbench import Workbench, cpu_s, percentile

from rollstream.schemas.ids import call_id
from rollstream.schemas.tools import ToolCall
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.tool_client import ToolClient

COMMAND = "python benchmarks/run.py --only tool_round_trip"
TOOL = Path(__file__).with_name("no_op_tool.py")
IN_FLIGHT = 256
ANSWER_S = 60.0


def measure(bench: Workbench) -> list[Figure]:
    """Round trip and throughput."""
    return asyncio.run(_measure(bench))


async def _measure(bench: Workbench) -> list[Figure]:
    async with bench.topics() as kafka, AsyncExitStack() as stack:
        bench.say("starting a tool worker")
        first = await stack.enter_async_context(_tool_worker(bench, kafka, 0))
        client = await stack.enter_async_context(ToolClient(kafka, worker_id="caller"))
        calls = _calls()
        await _run(client, calls, count=bench.size(2_000, 100), in_flight=16)
        bench.say("one call at a time")
        idle_s = await _run(client, calls, count=bench.size(2_000, 100), in_flight=1)
        bench.say(f"{IN_FLIGHT} calls in flight, one tool worker")
        one = await _throughput(bench, client, calls, [first.pid])
        bench.say(f"{IN_FLIGHT} calls in flight, two tool workers")
        second = await stack.enter_async_context(_tool_worker(bench, kafka, 1))
        await _run(client, calls, count=bench.size(2_000, 100), in_flight=16)
        two = await _throughput(bench, client, calls, [first.pid, second.pid])
    return [*_idle_figures(idle_s), *_throughput_figures(one, two)]


def _tool_worker(
    bench: Workbench, kafka: KafkaSettings, index: int
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return bench.role(kafka, "tool-worker", f"tools-{index}", f'tool_worker.tools=["{TOOL}"]')


@dataclass(frozen=True)
class Throughput:
    """One run with many calls in flight. ``worker_cpu_s``: of all tool workers, ``caller_cpu_s``: of this process."""

    calls: int
    wall_s: float
    caller_cpu_s: float
    worker_cpu_s: float
    p50_s: float

    @property
    def calls_per_s(self) -> float:
        """By the clock on the wall."""
        return self.calls / self.wall_s

    def describe(self) -> str:
        """CPU time of both sides, for a note."""
        return (
            f"{IN_FLIGHT} in flight, p50 {self.p50_s * 1e3:.0f} ms; CPU per call: caller "
            f"{self.caller_cpu_s / self.calls * 1e6:.0f} us, tool workers {self.worker_cpu_s / self.calls * 1e6:.0f} us"
        )


async def _throughput(bench: Workbench, client: ToolClient, calls: Iterator[ToolCall], pids: list[int]) -> Throughput:
    count = bench.size(20_000, 500)
    workers, caller, begin = sum(map(cpu_s, pids)), cpu_s(os.getpid()), time.perf_counter()
    taken_s = await _run(client, calls, count=count, in_flight=IN_FLIGHT)
    return Throughput(
        calls=count,
        wall_s=time.perf_counter() - begin,
        caller_cpu_s=cpu_s(os.getpid()) - caller,
        worker_cpu_s=sum(map(cpu_s, pids)) - workers,
        p50_s=statistics.median(taken_s),
    )


async def _run(client: ToolClient, calls: Iterator[ToolCall], *, count: int, in_flight: int) -> list[float]:
    """Seconds each of the next ``count`` calls took."""
    taken_s: list[float] = []
    batch = itertools.islice(calls, count)

    async def caller() -> None:
        for call in batch:
            begin = time.perf_counter()
            result = await client.call(call, "default")
            taken_s.append(time.perf_counter() - begin)
            assert result.status == "ok", result

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(caller())
    return taken_s


def _calls() -> Iterator[ToolCall]:
    for number in itertools.count():
        yield ToolCall(
            call_id=call_id("bench", 0, str(number), 0, "{}"),
            session_id=None,
            turn=0,
            token=None,
            tool="no_op",
            arguments="{}",
            deadline=time.time() + ANSWER_S,
            timeout_s=ANSWER_S,
            reply_topic="",
            reply_partition=0,
        )


def _idle_figures(taken_s: list[float]) -> list[Figure]:
    note = f"{len(taken_s)} calls, one at a time; caller, tool worker and broker on {os.cpu_count()} cores"
    return [
        figure("tool round trip, idle, p50", percentile(taken_s, 0.5) * 1e3, "ms", bar=5, higher_is_better=False,
               command=COMMAND, note=note),
        figure("tool round trip, idle, p99", percentile(taken_s, 0.99) * 1e3, "ms", bar=20, higher_is_better=False,
               command=COMMAND, note=note),
    ]  # fmt: skip


def _throughput_figures(one: Throughput, two: Throughput) -> list[Figure]:
    best = max(one, two, key=lambda run: run.calls_per_s)
    per_core = best.calls / best.caller_cpu_s
    return [
        figure("tool calls per tool worker process", one.calls_per_s, "calls/s", bar=1000, command=COMMAND,
               note=one.describe()),
        figure("tool calls per caller", best.calls_per_s, "calls/s", bar=3000, command=COMMAND,
               note=f"{best.describe()}; a core of its own would carry {per_core:,.0f} calls/s of this caller"),
    ]  # fmt: skip
