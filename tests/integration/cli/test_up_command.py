from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rollstream.cli.record_stream import read_records
from rollstream.cli.task_ledger import TaskLedger
from rollstream.schemas.messages import Message
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(180)]

QUESTIONS = 12
GROUP_SIZE = 2


def settings_file(kafka: KafkaSettings, folder: Path, *, model: str = "", engine: str = "scripted") -> Path:
    (folder / "tasks.jsonl").write_text(
        "".join(json.dumps({"prompt": f"What is {n} + {n}?", "answer": str(2 * n)}) + "\n" for n in range(QUESTIONS))
    )
    partitions = "".join(f"{json.dumps(topic)} = {count}\n" for topic, count in kafka.partitions.items())
    path = folder / "rollstream.toml"
    path.write_text(
        f"""
[kafka]
bootstrap = "{kafka.bootstrap}"
prefix = "{kafka.prefix}"
[kafka.partitions]
{partitions}
[rollout_worker]
model = "{model}"
drain_s = 5
[rollout_worker.engine]
kind = "{engine}"
[tool_worker]
tools = ["calculator"]
drain_s = 5
[producer]
source = "{folder / "tasks.jsonl"}"
run_id = "up"
tools = ["calculator"]
reward = "numeric"
group_size = {GROUP_SIZE}
is_paced = false
[up]
rollout_workers = 2
restarts = 1
first_restart_delay_s = 0.1
drain_s = 20
log_dir = "{folder / "logs"}"
"""
    )
    return path


class Up:
    """A running ``rollstream up`` and the lines it wrote."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def line_with(self, *texts: str) -> str:
        """Read on until a line holds all texts."""
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            self.lines.append(line)
            if all(text in line for text in texts):
                return line
        raise AssertionError(f"{texts} never appeared in:\n{''.join(self.lines)}")

    async def ended(self) -> int:
        """Read to the end; the exit code."""
        assert self.process.stderr is not None
        self.lines += (await self.process.stderr.read()).decode().splitlines(keepends=True)
        return await self.process.wait()


@asynccontextmanager
async def running_up(config: Path, *arguments: str) -> AsyncGenerator[Up]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rollstream.cli.main", "--config", str(config), "up", *arguments,
        stderr=asyncio.subprocess.PIPE, start_new_session=True, limit=2**20,
    )  # fmt: skip
    try:
        async with asyncio.timeout(150):
            yield Up(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def processes_with(text: str) -> list[int]:
    """Living processes whose command line holds the text."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


async def read_until_done(kafka: KafkaSettings, tasks: int) -> TaskLedger:
    ledger = TaskLedger()
    done = asyncio.Event()

    def see(message: Message, _: tuple[int, int, int]) -> None:
        if isinstance(message, RolloutTask):
            ledger.see_task(message)
        elif isinstance(message, Trajectory):
            ledger.see_trajectory(message)
        if ledger.ended == tasks and not ledger.open_tasks():
            done.set()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        reading = group.create_task(read_records(kafka, [kafka.topic("tasks"), kafka.topic("trajectories")], see))
        await done.wait()
        reading.cancel()
    return ledger


async def test_up_until_done_ends_when_every_task_has_its_trajectory(kafka: KafkaSettings, tmp_path: Path) -> None:
    config = settings_file(kafka, tmp_path)
    async with running_up(config, "--until-done", "--rollout-workers", "1") as up:
        assert await up.ended() == 0, "".join(up.lines)
    ledger = await read_until_done(kafka, QUESTIONS * GROUP_SIZE)
    assert ledger.emitted == QUESTIONS * GROUP_SIZE
    assert processes_with(str(config)) == []
    logs = {path.stem for path in (tmp_path / "logs").iterdir()}
    assert logs == {"tool-worker-0", "rollout-worker-0", "produce"}


async def test_a_killed_worker_is_replaced_and_ctrl_c_drains_everything(kafka: KafkaSettings, tmp_path: Path) -> None:
    config = settings_file(kafka, tmp_path)
    async with running_up(config) as up:
        await up.line_with("up", "workers 3")
        (victim,) = set(processes_with("rollout-worker-1")) & set(processes_with(str(config)))
        os.kill(victim, signal.SIGKILL)
        await up.line_with("rollout-worker-1", "restart 1")
        await up.line_with("rollout-worker-1", "own")
        up.process.send_signal(signal.SIGINT)
        assert await up.ended() == 0, "".join(up.lines)
    assert processes_with(str(config)) == []


async def test_a_role_that_cannot_run_ends_up_with_its_name_and_its_reason(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    config = settings_file(kafka, tmp_path, model="/nonexistent/model", engine="vllm")
    async with running_up(config) as up:
        assert await up.ended() == 1
    said = "".join(up.lines)
    assert "rollout-worker-" in said
    assert "could not be kept alive" in said
    assert "/nonexistent/model" in said
    assert processes_with(str(config)) == []
