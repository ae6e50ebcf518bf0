"""Worker processes that die in the middle of episodes: the next one goes on at the next turn, for any agent code."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from rollstream.cli.record_stream import read_records
from rollstream.schemas import ids
from rollstream.schemas.messages import Message
from rollstream.schemas.tasks import ChatMessage, RewardSpec, RolloutTask
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(180)]

TURNS = 4
SEAMS = 2 * TURNS + 2
AGENT = f"""
import asyncio, os, signal
from pathlib import Path
from rollstream.rollout_workers.agents import agent

FLAGS = Path(__file__).parent / "flags"

def perhaps_die(episode, seam):
    "kill -9 at this seam, once for the task whose turn it is."
    number = episode.task.extra["seam"]
    flag = FLAGS / f"{{number}}"
    if seam == number and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)

@agent("mortal")
async def mortal(episode):
    for turn in range({TURNS}):
        perhaps_die(episode, 2 * turn)
        await episode.generate()
        perhaps_die(episode, 2 * turn + 1)
        await episode.say(f"That was turn {{turn}} at {{await episode.now()}}, {{episode.random.random()}}.")
    lanes = [episode.branch() for _ in range(2)]
    async with asyncio.TaskGroup() as group:
        for lane in lanes:
            group.create_task(lane.generate())
    perhaps_die(episode, {SEAMS - 2})
    await episode.generate()
    perhaps_die(episode, {SEAMS - 1})
"""


def task(seam: int) -> RolloutTask:
    return RolloutTask(
        run_id="mortal",
        group_id=ids.group_id("mortal", seam),
        group_index=seam,
        group_size=1,
        member_index=0,
        trajectory_id=ids.trajectory_id("mortal", seam, 0),
        messages=[ChatMessage(role="user", content=f"Count from {seam}.")],
        agent="mortal",
        reward=RewardSpec(name="exact", answer="no"),
        extra={"seam": seam},
    )


async def test_an_agent_killed_at_every_turn_ends_once_and_repeats_no_turn_that_was_finished(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    (tmp_path / "flags").mkdir()
    (tmp_path / "mortal_agent.py").write_text(AGENT)
    tasks = [task(seam) for seam in range(SEAMS)]
    async with Publisher(kafka) as publisher:
        for each in tasks:
            partition = ids.group_partition(each.group_id, kafka.topics["tasks"].partitions)
            await publisher.publish(each, key=each.group_id, partition=partition)
    found: list[Trajectory] = []

    def see(message: Message, _: tuple[int, int, int]) -> None:
        assert isinstance(message, Trajectory)
        found.append(message)

    async with asyncio.timeout(150), asyncio.TaskGroup() as group:
        following = group.create_task(read_records(kafka, [kafka.topic("trajectories")], see))
        deaths = await run_until(kafka, tmp_path, lambda: len({t.trajectory_id for t in found}) == SEAMS)
        following.cancel()
    assert deaths == SEAMS
    assert Counter(t.trajectory_id for t in found) == Counter(t.trajectory_id for t in tasks)
    assert {t.status for t in found} == {"completed"}
    assert {(t.attempt, t.infra_failures, t.data_failures, len(t.samples)) for t in found} == {(1, 0, 0, 3)}
    assert {t.num_turns for t in found} == {TURNS + 3}
    begun = Counter(
        (line["trajectory_id"], line["birth"], line["path"])
        for line in map(json.loads, (tmp_path / "generations.jsonl").read_text().splitlines())
    )
    repeated = Counter({key: count - 1 for key, count in begun.items() if count > 1})
    assert len(begun) == SEAMS * (TURNS + 3)
    # With one slot every death hits one episode, in which at most one generation per lane had begun.
    assert sum(repeated.values()) <= deaths + 1
    assert max(repeated.values(), default=0) <= 1


async def run_until(kafka: KafkaSettings, folder: Path, is_over: Callable[[], bool]) -> int:
    """Run one worker after another under one name until it is over; returns how many have died."""
    deaths = 0
    while not is_over():
        with (folder / "log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "rollstream.cli.main", "rollout-worker", "--instance-id", "mortal"),
                cwd=folder,
                env=environment(kafka, folder),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
            )
        while process.returncode is None and not is_over():
            try:
                async with asyncio.timeout(0.1):
                    await process.wait()
            except TimeoutError:
                continue
        if process.returncode is None:
            process.terminate()
            assert await process.wait() == 0
        else:
            assert process.returncode == -9, (folder / "log").read_text()
            deaths += 1
    return deaths


def environment(kafka: KafkaSettings, folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(folder),
        "ROLLSTREAM_KAFKA__BOOTSTRAP": kafka.bootstrap,
        "ROLLSTREAM_KAFKA__PREFIX": kafka.prefix,
        "ROLLSTREAM_KAFKA__PARTITIONS": json.dumps(kafka.partitions),
        "ROLLSTREAM_ROLLOUT_WORKER__AGENTS": '["mortal_agent"]',
        "ROLLSTREAM_ROLLOUT_WORKER__ENGINE": '{"kind": "scripted", "script": "arithmetic"}',
        "ROLLSTREAM_ROLLOUT_WORKER__GENERATION_LOG": str(folder / "generations.jsonl"),
        "ROLLSTREAM_ROLLOUT_WORKER__MAX_RUNNING_EPISODES": "1",
    }
