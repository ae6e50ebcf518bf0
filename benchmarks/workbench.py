"""What every benchmark works with: a broker, topics of its own, and roles as processes of their own."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka's admin client is annotated in part only)

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rollstream.cli.command_line import CommandLine
from rollstream.cli.role_processes import rollstream_command
from rollstream.schemas.control import WorkerStatus
from rollstream.transport.clients import admin_client
from rollstream.transport.control import ControlFollower
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import apply_topics

PARTITIONS = {
    "tasks": 8,
    "journal": 8,
    "tool-calls.default": 8,
    "tool-results": 8,
    "trajectories": 8,
    "dead-letters": 1,
}
ROLE_START_S = 180.0
ROLE_STOP_S = 60.0
ENVIRONMENT = dict(os.environ)
"""As the user gave it: an engine in this process adds variables that are not meant for others."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class RoleEndedError(RuntimeError):
    """A role process ended when it should have run; names its log."""


@dataclass(frozen=True)
class Workbench:
    """Where a benchmark runs.

    Attributes:
        bootstrap: address of the broker.
        broker_pid: its process; None: it was given, or runs in a container.
        is_quick: tiny sizes, to see that everything works; the figures mean nothing.
        folder: logs and scratch files; each run has its own.
        say: shows the user what is going on.
    """

    bootstrap: str
    broker_pid: int | None
    is_quick: bool
    folder: Path
    say: Callable[[str], None]

    def size(self, full: int, quick: int) -> int:
        """How many of something, by the size of this run."""
        return quick if self.is_quick else full

    @asynccontextmanager
    async def topics(self) -> AsyncGenerator[KafkaSettings]:
        """Topics under a prefix of their own, deleted afterwards."""
        kafka = KafkaSettings(bootstrap=self.bootstrap, prefix=f"bench-{uuid.uuid4().hex[:12]}.", partitions=PARTITIONS)
        await apply_topics(kafka)
        try:
            yield kafka
        finally:
            async with admin_client(kafka) as admin:
                await admin.delete_topics([topic.name for topic in kafka.topics.values()])

    @asynccontextmanager
    async def role(
        self, kafka: KafkaSettings, role: str, worker_id: str, *assignments: str
    ) -> AsyncGenerator[asyncio.subprocess.Process]:
        """A worker as a process, from its first sign of life on; drained at the end.

        Args:
            kafka: cluster and topics.
            role: ``tool-worker`` or ``rollout-worker``.
            worker_id: unique under the prefix.
            assignments: further settings, ``section.key=value``.

        Raises:
            RoleEndedError: it ended before it was ready.
        """
        section = role.replace("-", "_")
        partitions = f"kafka.partitions={json.dumps(kafka.partitions)}"
        line = CommandLine(None, (partitions, f'{section}.worker_id="{worker_id}"', *assignments))
        log_path = self.folder / f"{kafka.prefix}{worker_id}.log"
        with log_path.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *rollstream_command(line, kafka, role),
                env=ENVIRONMENT,
                cwd=self.folder,  # no rollstream.toml there
                stdout=log,
                stderr=log,
            )
        try:
            await _until_ready(kafka, process, worker_id, log_path)
            yield process
        finally:
            await _stop(process)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its threads so far; its children are not counted."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


class CpuMeter:
    """Who keeps how many cores busy, from now on: processes by what they are, and everybody else on this machine."""

    def __init__(self, processes: Mapping[str, Sequence[int]]) -> None:
        self._processes = processes
        self._began = time.perf_counter()
        self._before = self._used_s()

    def busy(self) -> dict[str, float]:
        """Cores kept busy since the start, by name; ``others`` last."""
        wall_s = time.perf_counter() - self._began
        used_s = {name: now - self._before[name] for name, now in self._used_s().items()}
        machine_s = used_s.pop("machine")
        return {name: each / wall_s for name, each in {**used_s, "others": machine_s - sum(used_s.values())}.items()}

    def _used_s(self) -> dict[str, float]:
        used_s = {name: sum(map(cpu_s, pids)) for name, pids in self._processes.items()}
        user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
        return {**used_s, "machine": (user + nice + system + irq + softirq) / TICKS_PER_S}


def described(busy: Mapping[str, float]) -> str:
    """For a note: ``engine 93%, reader 4%``."""
    return ", ".join(f"{name} {cores:.0%}" for name, cores in busy.items() if cores >= 0.005)


def children(pid: int) -> list[int]:
    """Process ids of the children."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    threads = path.parent.parent.iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float]) -> str:
    """Median and range for a note: ``0.97 (0.95 to 0.98, n=3)``."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g}, n={len(values)})"


async def _until_ready(
    kafka: KafkaSettings, process: asyncio.subprocess.Process, worker_id: str, log_path: Path
) -> None:
    async with ControlFollower(kafka) as control, asyncio.timeout(ROLE_START_S):
        while all(status.worker_id != worker_id for status in control.all(WorkerStatus).values()):
            if process.returncode is not None:
                raise RoleEndedError(
                    f"{worker_id!r} ended with code {process.returncode} before it was ready: see {str(log_path)!r}"
                )
            await control.wait_for_change(0.2)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(ROLE_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
