"""Reads what the witnesses have: the topics from their first record to their last, the ledger, the generation logs."""
# aiokafka is annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from chaos_workload import EngineKind
from evidence import Begun, TaskSeen, Trained, TrajectorySeen
from notebook_agent import notes_about
from stand_in_trainer import fingerprint
from tool_history import Decode, NotesOf, broken_history, pages_of

from rollstream.rollout_workers.hermes import parse_hermes
from rollstream.rollout_workers.scripted_engine import decode_bytes
from rollstream.schemas.dead_letters import DeadLetter, DeadLetterResolution
from rollstream.schemas.journal import JournalRecord
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

READ_S = 60.0
"""Longest wait for a record that is there."""

Record = ConsumerRecord[bytes | None, bytes | None]


async def read_topic(kafka: KafkaSettings, short: str) -> AsyncGenerator[Record]:
    """Every record of a topic, each partition in order, from offset 0 to its present end, by a consumer of its own."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap, group_id=None, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(kafka.topic(short), n) for n in range(kafka.topics[short].partitions)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            while await consumer.position(partition) < ends[partition]:
                async with asyncio.timeout(READ_S):
                    for record in (await consumer.getmany(partition, timeout_ms=1000)).get(partition, []):
                        yield record
    finally:
        await consumer.stop()


async def read_tasks(kafka: KafkaSettings) -> list[TaskSeen]:
    """All tasks, repeated ones included."""
    seen: list[TaskSeen] = []
    async for record in read_topic(kafka, "tasks"):
        task = decode_record(record, RolloutTask)
        seen.append(TaskSeen(task.trajectory_id, task.group_index, task.group_size, task.member_index))
    return seen


async def read_trajectories(kafka: KafkaSettings, engine: EngineKind, model: str) -> list[TrajectorySeen]:
    """All trajectories, copies included, with the history of their tools looked through."""
    decode, notes_of = await asyncio.to_thread(readers_of, engine, model)
    seen: list[TrajectorySeen] = []
    async for record in read_topic(kafka, "trajectories"):
        trajectory = decode_record(record, Trajectory)
        seen.append(
            TrajectorySeen(
                trajectory_id=trajectory.trajectory_id,
                group_index=trajectory.group_index,
                group_size=trajectory.group_size,
                member_index=trajectory.member_index,
                status=trajectory.status,
                is_trainable=trajectory.status != "failed" and any(s.is_trainable for s in trajectory.samples),
                digest=blake2b(record.value or b"", digest_size=16).hexdigest(),
                fingerprint=fingerprint(trajectory),
                at=record.timestamp / 1000,
                attempt=trajectory.attempt,
                broken_history=_broken(trajectory, decode, notes_of),
            )
        )
    return seen


async def read_signs(kafka: KafkaSettings) -> dict[str, list[float]]:
    """When each task was started, resumed, went on, or ended, by trajectory id, ascending."""
    signs: dict[str, list[float]] = defaultdict(list)
    async for record in read_topic(kafka, "journal"):
        entry = decode_record(record, JournalRecord)
        if entry.kind != "released":
            signs[entry.trajectory_id].append(record.timestamp / 1000)
    return {trajectory_id: sorted(moments) for trajectory_id, moments in signs.items()}


async def read_dead_letters(kafka: KafkaSettings) -> dict[str, int]:
    """How many there are, by the topic they were for and the kind of their error."""
    counted: Counter[str] = Counter()
    async for record in read_topic(kafka, "dead-letters"):
        letter = decode_record(record, DeadLetter, DeadLetterResolution)
        if isinstance(letter, DeadLetter):
            counted[f"{letter.origin_topic}: {letter.error_type}: {letter.error[:80]}"] += 1
    return dict(counted)


def readers_of(engine: EngineKind, model: str) -> tuple[Decode, NotesOf]:
    """How sampled tokens are read, and which notes follow from them. Blocking."""
    if engine == "scripted":
        return decode_bytes, lambda text, _page, _calls: notes_called(text)
    from rollstream.rollout_workers.template_chat_format import TemplateChatFormat

    chat = TemplateChatFormat.load(Path(model))
    return chat.decode_turn, notes_about


def notes_called(text: str) -> list[str]:
    """The notes that a turn of the script asks for."""
    return [json.loads(call.arguments_json)["text"] for call in parse_hermes(text).calls]


def _broken(trajectory: Trajectory, decode: Decode, notes_of: NotesOf) -> str | None:
    for sample in trajectory.samples:
        pages = pages_of(sample, decode, notes_of)
        found = broken_history(pages, is_complete=trajectory.status == "completed")
        if found is not None:
            return found
    return None


def read_ledger(folder: Path) -> list[Trained]:
    """What the last checkpoint says was trained on."""
    checkpoint = folder / "checkpoint.json"
    if not checkpoint.exists():
        return []
    length: int = json.loads(checkpoint.read_text())["ledger_bytes"]
    lines = (folder / "ledger.jsonl").read_bytes()[:length].splitlines()
    return [Trained(**json.loads(line)) for line in lines]


def count_trained(folder: Path) -> int:
    """How many trajectories the last checkpoint says were trained on."""
    checkpoint = folder / "checkpoint.json"
    return json.loads(checkpoint.read_text())["trained"] if checkpoint.exists() else 0


def read_generations(folder: Path) -> list[Begun]:
    """All generations that were begun; a line that a kill has cut in two was not begun."""
    return [
        begun
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
        if (begun := begun_of(line)) is not None
    ]


def begun_of(line: bytes) -> Begun | None:
    """One line of a generation log; None: it is not whole."""
    try:
        fields: dict[str, Any] = json.loads(line)
        return Begun(**{name: fields[name] for name in Begun.__dataclass_fields__})
    except (ValueError, KeyError, TypeError):
        return None


async def follow_counts(kafka: KafkaSettings, count: Callable[[str, Sequence[Record]], None]) -> None:
    """Hand all records of `tasks` and `trajectories` to ``count`` as they come, until cancelled."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap, group_id=None, enable_auto_commit=False)
    await consumer.start()
    try:
        shorts = {kafka.topic(short): short for short in ("tasks", "trajectories")}
        partitions = [
            TopicPartition(topic, n) for topic, short in shorts.items() for n in range(kafka.topics[short].partitions)
        ]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        while True:
            for partition, records in (await consumer.getmany(timeout_ms=300)).items():
                count(shorts[partition.topic], records)
    finally:
        await consumer.stop()
