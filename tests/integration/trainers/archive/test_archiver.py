"""Every trajectory in exactly one file: whoever is killed, however many archive at once, wherever the files lie."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from rollstream.schemas.control import WorkerStatus
from rollstream.schemas.errors import DataLossError, RollstreamError, SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.archive.part_encoding import read_header
from rollstream.trainers.archive.parts import PartHeader
from rollstream.trainers.archive.service import ArchiveSummary, run_archiver
from rollstream.trainers.archive.settings import ArchiveSettings, PartFormat
from rollstream.trainers.trajectory_log import TrajectoryLog
from rollstream.trainers.trajectory_reading import read_trajectories
from rollstream.transport.clients import admin_client, start_producer
from rollstream.transport.control import ControlFollower
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]
GROUPS = 40
SCRIPT = Path(__file__).with_name("killed_archiver.py")


def records(make: Make, *, first: int = 0) -> list[Trajectory]:
    """Two members of each group, in any order, some twice; ``worker_id`` tells copies apart."""
    random = Random(first)
    members = [(group, member) for group in range(first, first + GROUPS) for member in range(2)]
    members += random.sample(members, 10)
    random.shuffle(members)
    return [make(group, member, worker_id=f"{group}/{member}/{place}") for place, (group, member) in enumerate(members)]


async def sent(send: Send, trajectories: list[Trajectory]) -> dict[str, str]:
    """Send one after the other; per id the one that counts."""
    first: dict[str, str] = {}
    for trajectory in trajectories:
        await send([trajectory])
        first.setdefault(trajectory.trajectory_id, trajectory.worker_id)
    return first


def settings_of(target: str, **changes: object) -> ArchiveSettings:
    return ArchiveSettings.model_validate({"target": target, "part_rows": 7, "part_minutes": 0.005} | changes)


def archived(target: str) -> list[tuple[str, str]]:
    with suppress(SettingsError):
        return sorted((t.trajectory_id, t.worker_id) for t in read_trajectories(target))
    return []


async def until_archived(target: str, expected: dict[str, str]) -> None:
    async with asyncio.timeout(90):
        while len(await asyncio.to_thread(archived, target)) < len(expected):  # noqa: ASYNC110 -- files tell nobody
            await asyncio.sleep(0.1)


def chains(target: Path, file_format: PartFormat = "parquet") -> dict[int, list[PartHeader]]:
    """The headers of each partition's parts, by where they begin."""
    found: dict[int, list[PartHeader]] = {}
    for path in sorted(target.glob("p*/*")):
        body = path.read_bytes()
        header = read_header(lambda start, end, body=body: body[start:end], len(body), file_format)
        found.setdefault(header.partition, []).append(header)
    return found


def assert_unbroken(target: Path, file_format: PartFormat = "parquet") -> None:
    for parts in chains(target, file_format).values():
        assert [part.first_offset for part in parts] == [0, *(part.end_offset for part in parts[:-1])]


async def archiving(target: str, kafka: KafkaSettings, expected: dict[str, str], **changes: object) -> ArchiveSummary:
    """Archive until everything is in files."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run_archiver(settings_of(target, **changes), kafka, stop))
        await until_archived(target, expected)
        stop.set()
    return running.result()


async def send_rubbish(kafka: KafkaSettings) -> None:
    producer = await start_producer(kafka)
    await producer.send_and_wait(kafka.topic("trajectories"), b"rubbish", b"k", 0, headers=[("schema", b"Trajectory")])
    await producer.stop()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_killed_anywhere_again_and_again_it_writes_each_trajectory_once(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, tmp_path: Path
) -> None:
    expected = await sent(send, records(make_trajectory))
    await send_rubbish(kafka)
    random = Random(5)
    job = {
        "kafka": kafka.model_dump(mode="json", exclude_none=True),
        "archive": settings_of(str(tmp_path / "archive")).model_dump(mode="json"),
        "kills": [random.randint(1, 1200) for _ in range(40)],
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    process = await asyncio.create_subprocess_exec(sys.executable, str(SCRIPT), str(tmp_path / "job.json"), stdout=PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(200):
            killed = json.loads(await process.stdout.readline())["killed"]
        await until_archived(str(tmp_path / "archive"), expected)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert killed >= 20
    assert archived(str(tmp_path / "archive")) == sorted(expected.items())
    assert_unbroken(tmp_path / "archive")


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
async def test_two_that_archive_the_same_write_each_trajectory_once(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, tmp_path: Path, file_format: PartFormat
) -> None:
    target = str(tmp_path / "archive")
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        twins = [
            tasks.create_task(run_archiver(settings_of(target, worker_id=name, file_format=file_format), kafka, stop))
            for name in ("one", "other")
        ]
        expected = await sent(send, records(make_trajectory))
        await until_archived(target, expected)
        stop.set()
    summaries = [twin.result() for twin in twins]
    assert archived(target) == sorted(expected.items())
    assert sum(summary.trajectories for summary in summaries) == len(expected)
    assert_unbroken(tmp_path / "archive", file_format)


async def test_an_archive_in_s3_goes_on_where_it_ended(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, bucket: str
) -> None:
    target = f"{bucket}/archive"
    expected = await sent(send, records(make_trajectory))
    first = await archiving(target, kafka, expected)
    again = await sent(send, records(make_trajectory)[:10] + records(make_trajectory, first=GROUPS))
    more = {**again, **expected}
    second = await archiving(target, kafka, more)
    assert (first.trajectories, first.duplicates, first.yielded) == (2 * GROUPS, 10, 0)
    assert (second.trajectories, second.duplicates) == (2 * GROUPS, 20)
    assert archived(target) == sorted(more.items())


async def test_partitions_may_be_shared_out_and_another_archives_place_is_refused(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, tmp_path: Path
) -> None:
    target = str(tmp_path / "archive")
    expected = await sent(send, records(make_trajectory))
    halves = [
        range(0, kafka.topics["trajectories"].partitions, 2),
        range(1, kafka.topics["trajectories"].partitions, 2),
    ]
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for half in halves:
            tasks.create_task(run_archiver(settings_of(target, partitions=tuple(half)), kafka, stop))
        await until_archived(target, expected)
        stop.set()
    assert archived(target) == sorted(expected.items())
    with pytest.raises(SettingsError, match="is an archive with topic"):
        await run_archiver(settings_of(target, topic="scored-trajectories"), kafka, asyncio.Event())
    with pytest.raises(SettingsError, match=r"partitions, of which \[99\]"):
        await run_archiver(settings_of(target, partitions=(99,)), kafka, asyncio.Event())


async def test_what_was_deleted_before_it_was_archived_is_said_and_noted(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, tmp_path: Path
) -> None:
    target = str(tmp_path / "archive")
    expected = await sent(send, records(make_trajectory))
    await archiving(target, kafka, expected)
    await sent(send, records(make_trajectory, first=GROUPS))
    deleted = await delete_all(kafka)
    later = await sent(send, records(make_trajectory, first=2 * GROUPS))

    with pytest.raises(DataLossError, match="--accept-loss"):
        await run_archiver(settings_of(target), kafka, asyncio.Event())
    await archiving(target, kafka, {**expected, **later}, accepts_loss=True)

    assert archived(target) == sorted({**expected, **later}.items())
    assert_unbroken(tmp_path / "archive")
    gaps = {
        partition: part.end_offset
        for partition, parts in chains(Path(target)).items()
        for part in parts
        if part.is_lost
    }
    assert gaps == deleted


async def delete_all(kafka: KafkaSettings) -> dict[int, int]:
    """Delete what the topic holds, as retention does; per partition with records, where it then begins."""
    async with TrajectoryLog(kafka) as log, admin_client(kafka) as admin:
        before, ends = await log.beginning_offsets(), await log.end_offsets()
        await admin.delete_records(
            {TopicPartition(log.topic, p): RecordsToDelete(before_offset=end) for p, end in ends.items() if end}
        )
    return {partition: end for partition, end in ends.items() if end > before[partition]}


async def test_the_command_writes_what_it_has_read_when_it_is_told_to_stop(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, tmp_path: Path
) -> None:
    expected = await sent(send, records(make_trajectory))
    target = tmp_path / "archive"
    command = [sys.executable, "-m", "rollstream.cli.main", "archive", "run", "--target", str(target)]
    command += ["--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix, "--part-rows", "1000", "--metrics-port", "0"]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(60), ControlFollower(kafka) as control:
            while not any(status.running == len(expected) for status in control.all(WorkerStatus).values()):
                await control.wait_for_change(timeout_s=1)
            assert archived(str(target)) == []
            process.send_signal(signal.SIGTERM)
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert f"{len(expected)} trajectories in" in out.decode()
    assert archived(str(target)) == sorted(expected.items())


@pytest.mark.parametrize(
    ("target", "complaint"),
    [("nonsense://x", "cannot be opened"), ("https://example.invalid/x", "not known to create files")],
)
async def test_a_target_that_cannot_hold_an_archive_is_refused(
    kafka: KafkaSettings, target: str, complaint: str
) -> None:
    with pytest.raises(RollstreamError, match=complaint):
        await run_archiver(settings_of(target), kafka, asyncio.Event())
