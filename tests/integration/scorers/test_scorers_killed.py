"""Scorers that are killed at every stage: nothing is lost, and what comes twice is the same."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.records import Record, decode_record
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(120)]

Make = Callable[..., Trajectory]
Send = Callable[[list[Trajectory]], Awaitable[None]]

GROUPS, SIZE = 30, 2
MORTAL_SCORER = '''
"""Ranks groups, in a process that kills itself at the stage the file `stage` names."""
import os, pathlib, signal
from rollstream.schemas.trajectories import Trajectory
from rollstream.scorers import scorer
from rollstream.transport.intake import GroupIntake
from rollstream.transport.publisher import Publisher

home = pathlib.Path(__file__).parent
seen = {}

def die_at(stage, after):
    seen[stage] = seen.get(stage, 0) + 1
    if (home / "stage").read_text() == stage and seen[stage] > after:
        os.kill(os.getpid(), signal.SIGKILL)

publish = Publisher.publish
async def mortal_publish(self, message, **options):
    if isinstance(message, Trajectory):
        die_at("before the scored record", 7)
    place = await publish(self, message, **options)
    if isinstance(message, Trajectory):
        die_at("after the scored record", 7)
    return place
Publisher.publish = mortal_publish

commit = GroupIntake._commit
async def mortal_commit(self):
    await commit(self)
    if self._committed and seen.get("while scoring"):
        die_at("after a commit", 0)
GroupIntake._commit = mortal_commit

@scorer(group=True)
async def rank(request):
    die_at("while scoring", 5)
    return [float(len(m.trajectory.samples[0].response_ids)) for m in request.members]
'''
STAGES = ["while scoring", "before the scored record", "after the scored record", "after a commit"]


async def test_whenever_it_is_killed_each_trajectory_is_scored_and_copies_are_equal(
    kafka: KafkaSettings,
    make: Make,
    send: Send,
    records: Callable[[str, int], Awaitable[list[Record]]],
    tmp_path: Path,
) -> None:
    (tmp_path / "mortal_scorer.py").write_text(MORTAL_SCORER)
    sent = [make(group, member) for member in range(SIZE) for group in range(GROUPS)]
    await send(sent)

    for stage in STAGES:
        assert await scorer_until_it_dies(kafka, tmp_path, stage) == -signal.SIGKILL, stage
    last = [make(GROUPS, member) for member in range(SIZE)]
    await send(last)
    sent += last
    finishing = asyncio.create_task(scorer_until_it_dies(kafka, tmp_path, "never", drain=(done := asyncio.Event())))
    by_id: dict[str, list[Trajectory]] = defaultdict(list)
    async with asyncio.timeout(60):
        while len(by_id) < len(sent):
            by_id.clear()
            for record in await records("scored-trajectories", len(sent)):
                trajectory = decode_record(record, Trajectory)
                by_id[trajectory.trajectory_id].append(trajectory)
    done.set()
    assert await finishing == 0

    for each in sent:
        copies = by_id[each.trajectory_id]
        assert {copy.reward for copy in copies} == {each.member_index + 1.0}
        assert len({repr(copy) for copy in copies}) == 1
    assert sum(map(len, by_id.values())) > len(sent), "something was scored twice, so kills were at work"


async def scorer_until_it_dies(kafka: KafkaSettings, home: Path, stage: str, drain: asyncio.Event | None = None) -> int:
    """The command in a process of its own; its exit code. ``drain``: when set, it is asked to leave."""
    (home / "stage").write_text(stage)
    command = [sys.executable, "-m", "rollstream.cli.main", "scorer", "--scorer", "mortal_scorer:rank"]
    command += ["--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix, "--instance-id", "mortal"]
    process = await asyncio.create_subprocess_exec(*command, cwd=home, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(60):
            if drain is not None:
                await drain.wait()
                process.send_signal(signal.SIGTERM)
            return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
