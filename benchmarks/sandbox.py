"""Sandboxes: how long one takes to open and a call in it, what it weighs, 500 at once, and the end of a killed worker.

Beside it, in the same run, what is in `alternatives`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from alternatives import measure_alternatives
from figures import Figure, figure
from soak import descendants
from workbench import Workbench, percentile

from rollstream.tool_workers.blank_sandboxes import stocked
from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.outside.cgroups import is_gone, process_identity, start_ticks
from rollstream.tool_workers.sandbox.replies import Execution
from rollstream.tool_workers.sandbox.sandbox import Sandbox, SandboxFactory, SupervisedSandbox
from rollstream.tool_workers.settings import MIB, SandboxSettings, ToolWorkerSettings

COMMAND = "python benchmarks/run.py --only sandbox"
LIMITS = SandboxSettings()
CALLERS = 8
TIMEOUT_S = 30.0
STOCK = ToolWorkerSettings().blank_sandboxes
BLANK_AGE_S = 3600.0
EDITOR = {"command": "view", "path": "notes.txt"} | dict.fromkeys(
    ("file_text", "view_range", "old_str", "new_str", "insert_line", "insert_text")
)
MAX_WORKER_START_S = 60.0
MAX_END_S = 10.0


def measure(bench: Workbench) -> list[Figure]:
    """All of it."""
    bench.say("a worker with 50 sandboxes is killed")
    figures = [_killed_worker(bench.size(50, 3))]  # first: it forks, and must not find threads
    figures += asyncio.run(_measure(bench))
    return figures


async def _measure(bench: Workbench) -> list[Figure]:
    async with _factory() as factory:
        bench.say("opening")
        figures = [await _opening(factory, bench.size(40, 3))]
        bench.say("calls in a warm session")
        calls = await _calls(factory, bench.size(300, 5))
        bench.say("first calls from the stock")
        figures += [*_call_figures(calls), await _first_calls(factory, bench.size(300, 3))]
        bench.say("other ways beside them")
        figures += await asyncio.to_thread(
            measure_alternatives, bench.size(60, 3), statistics.median(calls["bash"]), bench.folder, COMMAND
        )
        bench.say("many sessions at once")
        figures += await _many(factory, bench.size(500, 5), bench.size(1_000, 10))
    return figures


def _factory(running: int = CALLERS) -> SandboxFactory:
    return SandboxFactory(build_spawner("bwrap", LIMITS), LIMITS, max_running_programs=running)


async def _opening(factory: SandboxFactory, count: int) -> Figure:
    await (await factory.open()).close()
    taken_s: list[float] = []
    for _ in range(count):
        begin = time.perf_counter()
        sandbox = await factory.open()
        taken_s.append(time.perf_counter() - begin)
        await sandbox.close()
    return _milliseconds("sandbox, open, p50", statistics.median(taken_s), note=f"{count}, one after another")


async def _calls(factory: SandboxFactory, count: int) -> dict[str, list[float]]:
    """Seconds of each call by tool, in one session, one at a time."""
    sandbox = await factory.open()
    try:
        await sandbox.bash("echo a line > notes.txt", timeout_s=TIMEOUT_S)
        return {
            "bash": await _timed(count, lambda: sandbox.bash("true", timeout_s=TIMEOUT_S)),
            "python": await _timed(count, lambda: sandbox.python("pass", timeout_s=TIMEOUT_S)),
            "bash_session": await _timed(count, lambda: sandbox.shell("true", timeout_s=TIMEOUT_S)),
            "python_session": await _timed(count, lambda: sandbox.interpreter("pass", timeout_s=TIMEOUT_S)),
            "editor": await _timed(count, lambda: sandbox.operate("editor", EDITOR, timeout_s=TIMEOUT_S)),
        }
    finally:
        await sandbox.close()


async def _timed(count: int, call: Callable[[], Awaitable[Execution]]) -> list[float]:
    await call()
    taken_s: list[float] = []
    for _ in range(count):
        begin = time.perf_counter()
        done = await call()
        taken_s.append(time.perf_counter() - begin)
        assert done.exit_code == 0, done
    return taken_s


def _call_figures(calls: dict[str, list[float]]) -> list[Figure]:
    figures: list[Figure] = []
    for tool, taken_s in calls.items():
        note = f"{len(taken_s)} calls that do nothing, one at a time, in a session of many calls"
        bar_ms = 4.0 if tool in ("bash", "python") else None
        figures.append(_milliseconds(f"sandbox, {tool}, p50", statistics.median(taken_s), bar_ms=bar_ms, note=note))
        figures.append(_milliseconds(f"sandbox, {tool}, p99", percentile(taken_s, 0.99), note=note))
    return figures


async def _first_calls(factory: SandboxFactory, count: int) -> Figure:
    """Each episode comes when the stock is full, and takes one of it; the next is opened beside its call."""
    taken_s: list[float] = []
    async with stocked(factory, wanted=STOCK, max_age_s=BLANK_AGE_S) as blanks:
        for _ in range(count):
            while len(blanks) < STOCK:  # noqa: ASYNC110 -- the stock tells nobody that it is full
                await asyncio.sleep(0.005)
            begin = time.perf_counter()
            sandbox = await blanks.open()
            done = await sandbox.bash("true", timeout_s=TIMEOUT_S)
            taken_s.append(time.perf_counter() - begin)
            assert done.exit_code == 0, done
            await sandbox.close()
    note = (
        f"{count} sessions, one after another, each when {STOCK} sandboxes are in stock: from asking for one to the "
        f"answer of bash; the next is being opened meanwhile, on the same {os.cpu_count()} cores; "
        f"p50 {statistics.median(taken_s) * 1e3:.1f} ms"
    )
    return _milliseconds("sandbox, first call of an episode, p99", percentile(taken_s, 0.99), bar_ms=15, note=note)


async def _many(factory: SandboxFactory, count: int, calls: int) -> list[Figure]:
    async with AsyncExitStack() as stack:
        without = _proportional_bytes()
        begin = time.perf_counter()
        sandboxes: list[SupervisedSandbox] = []
        for _ in range(count):
            sandbox = await factory.open()
            stack.push_async_callback(sandbox.close)
            sandboxes.append(sandbox)
        opened_s = time.perf_counter() - begin
        each_bytes = (await asyncio.to_thread(_proportional_bytes) - without) / count
        taken_s = await _spread_calls(sandboxes, calls)
    note = f"{count} open, {calls} calls of bash by {CALLERS} callers on {os.cpu_count()} cores"
    return [
        figure(f"sandbox, {count} sessions, open all", opened_s, "s", higher_is_better=False, command=COMMAND,
               note=f"one after another; {opened_s / count * 1e3:.1f} ms each"),
        figure("sandbox, memory of an idle session", each_bytes / MIB, "MiB", bar=8, higher_is_better=False,
               command=COMMAND, note=f"PSS of bwrap, supervisor and the launcher's growth, mean of {count}"),
        _milliseconds(f"sandbox, bash with {count} sessions, p50", statistics.median(taken_s), note=note),
        _milliseconds(f"sandbox, bash with {count} sessions, p99", percentile(taken_s, 0.99), note=note),
    ]  # fmt: skip


async def _spread_calls(sandboxes: list[SupervisedSandbox], calls: int) -> list[float]:
    taken_s: list[float] = []
    left = iter(range(calls))

    async def caller() -> None:
        for number in left:
            begin = time.perf_counter()
            done = await sandboxes[number % len(sandboxes)].bash("true", timeout_s=TIMEOUT_S)
            taken_s.append(time.perf_counter() - begin)
            assert done.exit_code == 0, done

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller())
    return taken_s


def _proportional_bytes() -> int:
    """Memory of everything below this process, shared pages by share."""
    total = 0
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def _killed_worker(count: int) -> Figure:
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_work, args=(theirs, count))
    worker.start()
    assert worker.pid is not None
    if not ours.poll(MAX_WORKER_START_S):
        worker.kill()
        raise RuntimeError(f"a worker did not open {count} sandboxes within {MAX_WORKER_START_S} s")
    ours.recv()
    # by start time too: a number may be used again
    processes = [process_identity(pid) for pid in descendants(worker.pid) if start_ticks(pid)]
    begin = time.perf_counter()
    os.kill(worker.pid, signal.SIGKILL)
    while not all(map(is_gone, processes)):
        if time.perf_counter() - begin > MAX_END_S:
            raise RuntimeError(f"processes of a killed worker still run after {MAX_END_S} s")
        time.sleep(0.001)
    taken_s = time.perf_counter() - begin
    worker.join()
    return _milliseconds(f"sandbox, worker with {count} killed, all gone", taken_s, bar_ms=200,
                         note=f"{len(processes)} processes, each sandbox running a program")  # fmt: skip


def _work(parent: Connection, count: int) -> None:
    async def hold() -> None:
        async with _factory(count) as factory, asyncio.TaskGroup() as group:
            sandboxes = [await factory.open() for _ in range(count)]
            for sandbox in sandboxes:
                group.create_task(_sleep_inside(sandbox))
            await asyncio.sleep(1.0)  # the programs start
            parent.send("ready")

    asyncio.run(hold())


async def _sleep_inside(sandbox: Sandbox) -> None:
    await sandbox.bash("sleep 600", timeout_s=600)


def _milliseconds(name: str, value_s: float, *, bar_ms: float | None = None, note: str = "") -> Figure:
    return figure(name, value_s * 1e3, "ms", bar=bar_ms, higher_is_better=False, command=COMMAND, note=note)
