"""How late the event loop of a rollout worker runs what is due, with 256 episodes in it.

The worker runs here, in the loop that is probed, with a scripted engine in it as well; tool worker and broker are
processes of their own. A lag holds up every episode of the worker: its next request, its tool calls, its heartbeat.
A loop with nothing else to do, in a process of its own at the same time, shows what the machine adds.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

from figures import Figure, figure
from workbench import Workbench, percentile
from workload import SCRIPTED_LIMITS, SCRIPTED_SAMPLING, arithmetic_tasks, publish_tasks, scripted_engine

from rollstream.rollout_workers.service import run_rollout_worker
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas.control import WorkerStatus
from rollstream.transport.control import ControlFollower
from rollstream.transport.settings import KafkaSettings

COMMAND = "python benchmarks/run.py --only event_loop"
EPISODES = 256
PROBE_S = 0.005
WORKER = "probed"


def measure(bench: Workbench) -> list[Figure]:
    """Lag at the 99th percentile."""
    return asyncio.run(_measure(bench))


async def _measure(bench: Workbench) -> list[Figure]:
    episodes, seconds = bench.size(EPISODES, 16), float(bench.size(30, 2))
    settings = RolloutWorkerSettings(
        engine=scripted_engine(episodes, 1.0), max_running_episodes=episodes, worker_id=WORKER, drain_s=0.0
    )
    async with (
        bench.topics() as kafka,
        bench.role(kafka, "tool-worker", "tools", 'tool_worker.tools=["calculator"]'),
    ):
        bench.say("publishing tasks")
        tasks = arithmetic_tasks("lag", bench.size(8192, 64), SCRIPTED_LIMITS, SCRIPTED_SAMPLING)
        await publish_tasks(kafka, tasks)
        bench.say(f"{episodes} episodes for {seconds:.0f} s")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            idle = asyncio.get_running_loop().run_in_executor(pool, lags_of_an_idle_loop, seconds)
            lags_s, cpu = await _probed(settings, kafka, seconds)
            idle_lags_s = await idle
        finished = await _finished(kafka)
    note = (
        f"{episodes} episodes at once, {finished} ended, {len(lags_s)} probes in {seconds:.0f} s; "
        f"loop busy {cpu / seconds:.0%} of a core, on {os.cpu_count()} cores with tool worker and broker; "
        f"an idle loop beside it: p99 {percentile(idle_lags_s, 0.99) * 1e3:.1f} ms"
    )
    return [
        figure("event-loop lag, 256 episodes, p99", percentile(lags_s, 0.99) * 1e3, "ms", bar=20,
               higher_is_better=False, command=COMMAND, note=note),
        figure("event-loop lag, 256 episodes, largest", max(lags_s) * 1e3, "ms", higher_is_better=False,
               command=COMMAND),
    ]  # fmt: skip


async def _probed(settings: RolloutWorkerSettings, kafka: KafkaSettings, seconds: float) -> tuple[list[float], float]:
    """Lags while the worker has run full for a moment, and CPU seconds of this process meanwhile."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(run_rollout_worker(settings, kafka, stop))
        await _until_running(kafka)
        await asyncio.sleep(seconds / 10)
        cpu = time.process_time()
        lags_s = await _lags(seconds)
        used_s = time.process_time() - cpu
        stop.set()
    return lags_s, used_s


def lags_of_an_idle_loop(seconds: float) -> list[float]:
    """Runs in a process of its own."""
    return asyncio.run(_lags(seconds))


async def _lags(seconds: float) -> list[float]:
    """How much later than asked a timer wakes us, again and again."""
    clock = time.perf_counter
    end, lags_s = clock() + seconds, list[float]()
    while (due := clock() + PROBE_S) < end:
        await asyncio.sleep(PROBE_S)
        lags_s.append(clock() - due)
    return lags_s


async def _until_running(kafka: KafkaSettings) -> None:
    async with ControlFollower(kafka) as control, asyncio.timeout(60):
        while all(status.worker_id != WORKER for status in control.all(WorkerStatus).values()):
            await control.wait_for_change(0.5)


async def _finished(kafka: KafkaSettings) -> int:
    """Episodes the worker has ended, in its own last words."""
    async with ControlFollower(kafka) as control:
        return next(each.finished for each in control.all(WorkerStatus).values() if each.worker_id == WORKER)
