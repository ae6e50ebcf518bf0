"""Every role and the broker are killed once while a run is under way: it ends as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rollstream.cli.record_stream import read_records
from rollstream.schemas.ids import trajectory_id
from rollstream.schemas.messages import Message
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.local_broker import BrokerSettings, LocalBroker
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(180)]

GROUPS, GROUP_SIZE = 24, 4
TASKS = GROUPS * GROUP_SIZE
DEADLINE_S = 60.0
LOOK_EVERY_S = 0.05
TRAINER = """
import json, os, sys
from pathlib import Path
from rollstream.trainers import TrajectoryStream

folder = Path(sys.argv[1])
checkpoint = folder / "checkpoint.json"
where = {"kafka": os.environ["ROLLSTREAM_KAFKA__BOOTSTRAP"], "prefix": os.environ["ROLLSTREAM_KAFKA__PREFIX"]}
trained, version = [], 0
with TrajectoryStream(**where, groups_per_batch=2, pipeline_depth=3, max_staleness=None) as stream:
    if checkpoint.exists():
        saved = json.loads(checkpoint.read_text())
        trained, version = saved["trained"], saved["version"]
        stream.load_state_dict(saved["stream"])
    for batch in stream:
        trained += [t.trajectory_id for group in batch.groups for t in group.trajectories]
        version += 1
        weights = folder / f"policy-{version}-{os.getpid()}"
        weights.mkdir()
        (weights / "weights").write_bytes(b"weights")
        stream.publish_policy(version, weights)
        part = folder / "checkpoint.part"
        part.write_text(json.dumps({"trained": trained, "version": version, "stream": stream.state_dict()}))
        part.rename(checkpoint)
        stream.commit()
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LocalBroker]:
    """A broker that may be killed."""
    with LocalBroker(BrokerSettings(data_dir=tmp_path / "broker", source="jars")) as broker:
        yield broker


def write_settings(kafka: KafkaSettings, folder: Path) -> Path:
    rows = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(GROUPS)]
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "trainer.py").write_text(TRAINER)
    partitions = "\n".join(f"{json.dumps(topic)} = {count}" for topic, count in kafka.partitions.items())
    path = folder / "rollstream.toml"
    path.write_text(
        f"""
[kafka]
bootstrap = "{kafka.bootstrap}"
prefix = "{kafka.prefix}"
session_timeout_s = {kafka.session_timeout_s}
[kafka.partitions]
{partitions}
[rollout_worker]
max_running_episodes = 8
drain_s = 5
[rollout_worker.engine]
kind = "scripted"
[rollout_worker.engine.latency]
token_s = 0.01
token_sigma = 0.5
[tool_worker]
tools = ["calculator"]
drain_s = 5
[producer]
source = "{folder / "tasks.jsonl"}"
run_id = "killed"
tools = ["calculator"]
reward = "numeric"
group_size = {GROUP_SIZE}
is_paced = true
[up]
rollout_workers = 2
tool_workers = 2
trainer_command = ["{sys.executable}", "{folder / "trainer.py"}", "{folder}"]
first_restart_delay_s = 0.1
drain_s = 20
log_dir = "{folder / "logs"}"
"""
    )
    return path


class Run:
    """A running ``rollstream up``, what it has brought about, and ways to kill it."""

    def __init__(self, folder: Path, kafka: KafkaSettings, process: asyncio.subprocess.Process) -> None:
        self.folder = folder
        self.kafka = kafka
        self.process = process
        self.first: dict[str, Trajectory] = {}

    async def follow(self) -> None:
        """Fill ``first`` until cancelled."""

        def see(message: Message, _: tuple[int, int, int]) -> None:
            if isinstance(message, Trajectory):
                self.first.setdefault(message.trajectory_id, message)

        await read_records(self.kafka, [self.kafka.topic("trajectories")], see)

    @property
    def trained(self) -> list[str]:
        """What the trainer's checkpoint says."""
        checkpoint = self.folder / "checkpoint.json"
        return json.loads(checkpoint.read_text())["trained"] if checkpoint.exists() else []

    @property
    def said(self) -> str:
        """All lines of all processes."""
        return (self.folder / "up.log").read_text(errors="replace")

    def processes(self, *texts: str) -> list[int]:
        """Living processes of this run whose command line holds all the texts, the broker's left out."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                try:
                    words = (entry / "cmdline").read_bytes().decode(errors="replace")
                except OSError:
                    continue
                if str(self.folder) in words and "kafka.Kafka" not in words and all(text in words for text in texts):
                    found.append(int(entry.name))
        return found

    async def until(self, what: str, condition: Callable[[], object]) -> None:
        """Wait for a condition, with a deadline that says what did not come about."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.process.returncode is None, f"up ended while waiting for {what}:\n{self.said[-5000:]}"
            assert time.monotonic() < deadline, f"{what} did not come about:\n{self.said[-5000:]}"
            await asyncio.sleep(LOOK_EVERY_S)

    async def kill(self, name: str, text: str) -> None:
        """Kill -9 the one process of a role and wait until it is another one."""
        await self.until(f"one {name}", lambda: len(self.processes(text)) == 1)
        [victim] = self.processes(text)
        os.kill(victim, signal.SIGKILL)
        await self.until(f"restart of {name}", lambda: re.search(rf"^{name} +killed by signal 9", self.said, re.M))
        await self.until(f"another {name}", lambda: self.processes(text) not in ([], [victim]))


@asynccontextmanager
async def running(kafka: KafkaSettings, folder: Path) -> AsyncGenerator[Run]:
    config = write_settings(kafka, folder)
    with (folder / "up.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rollstream.cli.main", "--config", str(config), "up",
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    run = Run(folder, kafka, process)
    try:
        yield run
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_every_role_and_the_broker_killed_once_lose_and_repeat_nothing(
    broker: LocalBroker, tmp_path: Path
) -> None:
    partitions = {"tasks": 4, "journal": 4, "tool-calls.default": 4, "tool-results": 8, "trajectories": 2}
    kafka = KafkaSettings(bootstrap=broker.bootstrap, prefix="killed.", partitions=partitions, session_timeout_s=3)
    async with running(kafka, tmp_path) as run, asyncio.TaskGroup() as group:
        await run.until("topics", lambda: "own" in run.said)
        following = group.create_task(run.follow())
        await run.until("4 trajectories", lambda: len(run.first) >= 4)
        await run.kill("rollout-worker-0", "-rollout-worker-0")
        await run.kill("tool-worker-1", "-tool-worker-1")
        await run.until("a checkpoint", lambda: run.trained)
        await run.kill("trainer", "trainer.py")
        await run.kill("produce", "\0produce")
        await run.until("a third of the run", lambda: len(run.first) >= TASKS // 3)
        await asyncio.to_thread(broker.kill9)
        await asyncio.to_thread(broker.start)
        await run.until("every task trained on", lambda: len(run.trained) >= TASKS)
        await run.until("every trajectory", lambda: len(run.first) >= TASKS)
        run.process.send_signal(signal.SIGINT)
        assert await run.process.wait() == 0, run.said[-5000:]
        following.cancel()

    expected = {trajectory_id("killed", index, member) for index in range(GROUPS) for member in range(GROUP_SIZE)}
    assert sorted(run.trained) == sorted(expected)
    assert run.first.keys() == expected
    assert {(t.status, t.reward) for t in run.first.values()} == {("completed", 1.0)}
    assert "Traceback" not in run.said
    assert run.processes() == []
