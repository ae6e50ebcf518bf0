"""What happens to the broker happens to all roles at once: each waits, goes on, and nothing is lost or repeated.

Producer, rollout worker, tool worker, trainer and their followers of `control` run in one process, a fault comes in the
middle, and every task is trained on once.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from rollstream.producers.service import produce
from rollstream.producers.settings import ProducerSettings
from rollstream.rollout_workers.engine_settings import ScriptedSettings
from rollstream.rollout_workers.scripted_engine import LatencyProfile
from rollstream.rollout_workers.service import run_rollout_worker
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas.control import Pause, ProducerProgress
from rollstream.schemas.errors import TransientError
from rollstream.schemas.ids import trajectory_id
from rollstream.tool_workers.service import run_tool_worker
from rollstream.tool_workers.settings import ToolWorkerSettings
from rollstream.trainers import AsyncTrajectoryStream
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.local_broker import BrokerSettings, LocalBroker
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import apply_topics

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(240)]

GROUPS, GROUP_SIZE, GROUPS_PER_BATCH = 12, 2, 2
PARTITIONS = {"tasks": 2, "journal": 2, "tool-calls.default": 2, "tool-results": 2, "trajectories": 2}
AWAY_S = 6.0
LONG_AWAY_S = 90.0
DISK_MIB = 64

Fault = Callable[[], Awaitable[None]]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LocalBroker]:
    with LocalBroker(BrokerSettings(data_dir=tmp_path / "broker", source="jars")) as broker:
        yield broker


def kafka_of(broker: LocalBroker) -> KafkaSettings:
    return KafkaSettings(bootstrap=broker.bootstrap, prefix="faults.", partitions=PARTITIONS, session_timeout_s=6)


async def away(broker: LocalBroker, for_s: float) -> None:
    await asyncio.to_thread(broker.kill9)
    await asyncio.sleep(for_s)
    await asyncio.to_thread(broker.start)


async def train_through(kafka: KafkaSettings, folder: Path, fault: Fault) -> None:
    """All roles; the fault comes after the first batch; every trajectory must be trained on once."""
    await apply_topics(kafka)
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": f"What is {n} + {n}?", "answer": str(2 * n)}) + "\n" for n in range(GROUPS))
    )
    producer = ProducerSettings(
        source=str(rows), run_id="run", group_size=GROUP_SIZE, reward="numeric", is_paced=True, tools=()
    )
    engine = ScriptedSettings(latency=LatencyProfile(token_s=0.005))
    worker = RolloutWorkerSettings(engine=engine, worker_id="rollout", max_running_episodes=4, drain_s=5.0)
    tools = ToolWorkerSettings(tools=("calculator",), worker_id="tools", drain_s=5.0)
    stop, trained = asyncio.Event(), list[str]()
    injected: asyncio.Task[None] | None = None
    async with asyncio.TaskGroup() as group, ControlFollower(kafka) as control:
        group.create_task(run_rollout_worker(worker, kafka, stop))
        group.create_task(run_tool_worker(tools, kafka, stop))
        producing = group.create_task(produce(producer, kafka, stop))
        async with AsyncTrajectoryStream(
            kafka, groups_per_batch=GROUPS_PER_BATCH, max_staleness=None, timeout_s=180.0
        ) as stream:
            async for batch in stream:
                trained += [t.trajectory_id for t in batch.trajectories()]
                weights = folder / f"v{batch.number + 1}"
                weights.mkdir()
                (weights / "weights").write_bytes(b"weights")
                if injected is None:
                    injected = group.create_task(_inject(fault))
                await stream.publish_policy(batch.number + 1, weights)
                await stream.commit()
        assert injected is not None
        await injected
        assert (await producing).state == "finished"
        while not control.all(ProducerProgress)["producer/run"].is_finished:
            assert await control.wait_for_change(timeout_s=10), "the follower of control has lost it"
        stop.set()
    wanted = [trajectory_id("run", index, member) for index in range(GROUPS) for member in range(GROUP_SIZE)]
    assert sorted(trained) == sorted(wanted)


async def _inject(fault: Fault) -> None:
    await fault()


async def test_a_broker_killed_and_restarted_is_waited_for_by_all(broker: LocalBroker, tmp_path: Path) -> None:
    await train_through(kafka_of(broker), tmp_path, lambda: away(broker, AWAY_S))


async def test_a_broker_away_for_ninety_seconds_is_waited_for_by_all(broker: LocalBroker, tmp_path: Path) -> None:
    started = time.monotonic()
    await train_through(kafka_of(broker), tmp_path, lambda: away(broker, LONG_AWAY_S))
    assert time.monotonic() - started > LONG_AWAY_S


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that is soon full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system of its own may be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def random_text(length: int) -> str:
    """What no compression makes small: it does not fit into a page that is there already."""
    return Random(0).randbytes(length // 2).hex()


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(64 * 1024))
    return ballast


async def test_a_broker_whose_disk_is_full_is_waited_for_by_all(small_disk: Path, tmp_path: Path) -> None:
    with LocalBroker(BrokerSettings(data_dir=small_disk / "broker", source="jars")) as broker:
        kafka = kafka_of(broker)

        async def disk_full() -> None:
            ballast = await asyncio.to_thread(fill, small_disk)
            async with Publisher(kafka) as publisher:
                pause = Pause(is_paused=False, reason=random_text(64 * 1024))
                with pytest.raises(TransientError, match="was not acknowledged within"):
                    await publisher.publish(pause, key=control_key(pause), deadline_s=AWAY_S)
                ballast.unlink()
                await asyncio.to_thread(broker.kill9)
                await asyncio.to_thread(broker.start)

        await train_through(kafka, tmp_path, disk_full)
