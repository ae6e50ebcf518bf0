"""Calls of bash and python through Kafka, from a caller to a sandbox of a real tool worker and back.

One call at a time, each of a program that does nothing. A session's first call takes its sandbox from the stock of
blank ones; all others find it open. Sessions take turns, so that none of them is the one that was just in use.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from dataclasses import dataclass

from figures import Figure, figure
from workbench import Workbench, percentile

from rollstream.schemas import ids
from rollstream.schemas.tools import ToolCall
from rollstream.transport.tool_client import ToolClient

COMMAND = "python benchmarks/run.py --only sandbox_round_trip"
ARGUMENTS = {"bash": '{"command": "true"}', "python": '{"code": "pass"}'}
TOOLSET = "default"
ANSWER_S = 60.0
SESSION_INTERVAL_S = 0.25
"""Between first calls; long enough for the stock to be full again."""
BAR_MS = 10.0


@dataclass(frozen=True)
class Taken:
    """Seconds of one call. ``whole_s``: for the caller, ``run_s``: of them in the tool, as the tool worker says."""

    whole_s: float
    run_s: float


class Session:
    """An episode as its tool session sees it: each call is a turn, and knows the state after the one before."""

    def __init__(self, client: ToolClient, number: int) -> None:
        self._client = client
        self._trajectory_id = ids.trajectory_id("bench", number, 0)
        self._session_id = ids.session_id(self._trajectory_id, 0)
        self._turn = 0
        self._token: str | None = None

    async def call(self, tool: str) -> Taken:
        """Run a program that does nothing. Raises TransientError."""
        arguments = ARGUMENTS[tool]
        call = ToolCall(
            call_id=ids.call_id(self._trajectory_id, 0, str(self._turn), 0, arguments),
            session_id=self._session_id,
            turn=self._turn,
            token=self._token,
            tool=tool,
            arguments=arguments,
            deadline=time.time() + ANSWER_S,
            timeout_s=ANSWER_S,
            reply_topic="",
            reply_partition=0,
        )
        begin = time.perf_counter()
        result = await self._client.call(call, TOOLSET)
        whole_s = time.perf_counter() - begin
        assert result.status == "ok", result
        self._turn += 1
        self._token = result.token
        return Taken(whole_s, result.run_s)


def measure(bench: Workbench) -> list[Figure]:
    """First calls, then calls in open sessions."""
    return asyncio.run(_measure(bench))


async def _measure(bench: Workbench) -> list[Figure]:
    async with bench.topics() as kafka:
        bench.say("starting a tool worker")
        tools = f"tool_worker.tools={json.dumps([*ARGUMENTS])}"
        async with bench.role(kafka, "tool-worker", "tools", tools), ToolClient(kafka, worker_id="caller") as client:
            sessions = [Session(client, number) for number in range(bench.size(60, 3))]
            bench.say(f"first calls of {len(sessions)} sessions")
            first = await _first_calls(sessions)
            for session in sessions:
                await session.call("python")
            bench.say("calls in open sessions, one at a time")
            calls = {tool: await _calls(sessions, tool, bench.size(600, 12)) for tool in ARGUMENTS}
    return [*_call_figures(calls, len(sessions)), _first_figure(first)]


async def _first_calls(sessions: list[Session]) -> list[Taken]:
    loop = asyncio.get_running_loop()
    taken: list[Taken] = []
    for session in sessions:
        due = loop.time() + SESSION_INTERVAL_S
        taken.append(await session.call("bash"))
        await asyncio.sleep(due - loop.time())
    return taken


async def _calls(sessions: list[Session], tool: str, count: int) -> list[Taken]:
    return [await sessions[number % len(sessions)].call(tool) for number in range(count)]


def _call_figures(calls: dict[str, list[Taken]], sessions: int) -> list[Figure]:
    figures: list[Figure] = []
    for tool, taken in calls.items():
        note = (
            f"{len(taken)} calls that do nothing, one at a time, in {sessions} open sessions in turn; "
            f"{_run_ms(taken):.1f} ms in the tool, median; caller, tool worker, sandboxes and broker on "
            f"{os.cpu_count()} cores"
        )
        figures.append(_milliseconds(f"{tool} round trip, p50", taken, 0.5, bar_ms=BAR_MS, note=note))
        figures.append(_milliseconds(f"{tool} round trip, p99", taken, 0.99, note=note))
    return figures


def _first_figure(taken: list[Taken]) -> Figure:
    note = (
        f"{len(taken)} sessions, one every {SESSION_INTERVAL_S} s, a sandbox from the stock of the tool worker; "
        f"{_run_ms(taken):.1f} ms in the tool, median; p99 {percentile(_wholes_s(taken), 0.99) * 1e3:.1f} ms"
    )
    return _milliseconds("bash round trip, first call of an episode, p50", taken, 0.5, note=note)


def _milliseconds(name: str, taken: list[Taken], share: float, *, bar_ms: float | None = None, note: str) -> Figure:
    value_ms = percentile(_wholes_s(taken), share) * 1e3
    return figure(name, value_ms, "ms", bar=bar_ms, higher_is_better=False, command=COMMAND, note=note)


def _wholes_s(taken: list[Taken]) -> list[float]:
    return [each.whole_s for each in taken]


def _run_ms(taken: list[Taken]) -> float:
    return statistics.median(each.run_s for each in taken) * 1e3
