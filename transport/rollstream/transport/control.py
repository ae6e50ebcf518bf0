"""What everybody follows: the newest facts on `control`.

Duty: `ControlFollower` knows everything the topic held when it was entered, and hears of every fact after that.

Invariants: the newest policy and the newest progress of the trainer are those of the greatest (lineage, version), so a
trainer that was replaced and still writes is not heard. What is no fact is passed over: logged, and buried on behalf of
whoever gives a dead letter office.

Broker gone: what is known stays known, reading goes on when the broker is back. Crash: the topic is read anew.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from rollstream.schemas.control import (
    BackfillWanted,
    ControlMessage,
    Pause,
    PolicyLease,
    PolicyVersion,
    ProducerProgress,
    TrainerProgress,
    TrainerStart,
    WorkerStatus,
)
from rollstream.schemas.errors import InvalidMessageError, TransientError
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.records import Record, decode_record, record_place
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.unreadable import SteadyReader

logger = logging.getLogger(__name__)

CONTROL_TYPES = (
    PolicyVersion,
    PolicyLease,
    TrainerStart,
    TrainerProgress,
    ProducerProgress,
    Pause,
    BackfillWanted,
    WorkerStatus,
)
POLL_S = 1.0
READ_DEADLINE_S = 60.0
RETRY_S = 1.0
MAX_BURIED = 100
"""Letters of one follower. Everybody follows the topic and reads it anew at each start: in a rolling upgrade old
workers meet records of a newer schema every few seconds, and one letter for each would drown the others."""

M = TypeVar(
    "M",
    PolicyVersion,
    PolicyLease,
    TrainerStart,
    TrainerProgress,
    ProducerProgress,
    Pause,
    BackfillWanted,
    WorkerStatus,
)


def control_key(message: ControlMessage) -> str:
    """The key of a control record: compaction keeps the newest record of each."""
    match message:
        case PolicyVersion():
            return "policy"
        case PolicyLease():
            return f"policy-lease/{message.holder}"
        case TrainerStart():
            return f"trainer-start/{message.trainer_id}"
        case TrainerProgress():
            return "trainer-progress"
        case ProducerProgress():
            return f"producer/{message.run_id}"
        case Pause():
            return "pause"
        case BackfillWanted():
            return f"backfill/{message.run_id}"
        case WorkerStatus():
            return f"worker/{message.worker_id}"


def check_key(key: str, message: ControlMessage) -> None:
    """A fact under another's key would be removed with it, or remove it.

    Raises:
        InvalidMessageError: the record has another key than its message demands.
    """
    if key != control_key(message):
        raise InvalidMessageError(f"key {key!r} of a {type(message).__name__}, expected {control_key(message)!r}")


@dataclass(frozen=True, slots=True)
class _Fact:
    offset: int
    message: ControlMessage

    @property
    def rank(self) -> tuple[float, ...]:
        """Greater is newer. A copy that was sent long ago may land last: what only grows orders the words of one."""
        match self.message:
            case PolicyVersion() as policy:
                return policy.lineage, policy.version, self.offset
            case TrainerProgress() as trainer:
                closed = trainer.groups_consumed + trainer.groups_dropped
                return trainer.lineage, trainer.version, closed, trainer.updated_at, self.offset
            case ProducerProgress() as producer:
                return producer.groups_emitted, producer.groups_reserved, producer.updated_at, self.offset
            case _:
                return (self.offset,)


class ControlFacts:
    """The fold of the topic. Pure; records are given in the order of their offsets."""

    def __init__(self) -> None:
        self._facts: dict[str, _Fact] = {}

    def learn(self, key: str, offset: int, message: ControlMessage) -> None:
        """Take a fact in; one that is older by (lineage, version) than what is known changes nothing."""
        fact, known = _Fact(offset, message), self._facts.get(key)
        if known is None or type(known.message) is not type(message) or fact.rank >= known.rank:
            self._facts[key] = fact

    def forget(self, key: str) -> None:
        """A tombstone: there is no such fact any more."""
        self._facts.pop(key, None)

    def latest(self, message_type: type[M]) -> tuple[M, int] | None:
        """The newest message of a type under any key, with its offset."""
        facts = [fact for fact in self._facts.values() if isinstance(fact.message, message_type)]
        if not facts:
            return None
        newest = max(facts, key=lambda fact: fact.rank)
        return cast("M", newest.message), newest.offset

    def all(self, message_type: type[M]) -> dict[str, M]:
        """The newest message of a type by key."""
        return {key: fact.message for key, fact in self._facts.items() if isinstance(fact.message, message_type)}

    def placed(self, message_type: type[M]) -> list[tuple[M, int]]:
        """The newest message of each key of a type, with its offset."""
        facts = self._facts.values()
        return [(fact.message, fact.offset) for fact in facts if isinstance(fact.message, message_type)]


@dataclass(frozen=True, slots=True)
class _Rubbish:
    record: Record
    error: InvalidMessageError


class ControlFollower:
    """An async context manager; the following happens in the background until it is left.

    Args:
        kafka: cluster and topics.
        dead_letters: where records go that are no facts, one for each key; None for those who only look.

    Raises:
        TransientError: on entering: the topic could not be read to its end in time.
        SettingsError: on entering: there is no such topic.
    """

    def __init__(self, kafka: KafkaSettings, *, dead_letters: DeadLetterOffice | None = None) -> None:
        self._kafka = kafka
        self._dead_letters = dead_letters
        self._rubbish: asyncio.Queue[_Rubbish] = asyncio.Queue(MAX_BURIED)
        self._rubbish_keys: set[str] = set()
        self._partition = TopicPartition(kafka.topic("control"), 0)
        self._facts = ControlFacts()
        self._changes = 0
        self._changes_at_start = 0
        self._changed = asyncio.Event()
        self._seen: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
        self._stack = AsyncExitStack()
        self._consumer: AIOKafkaConsumer | None = None
        self._read_to = 0

    async def __aenter__(self) -> ControlFollower:
        async with AsyncExitStack() as stack:
            consumer = await start_consumer(self._kafka, self._partition.topic)
            stack.push_async_callback(stop_consumer, consumer)
            reader = SteadyReader(consumer)
            self._consumer = consumer
            await self._read_to_end(consumer, reader)
            self._changes_at_start = self._changes
            tasks = await asyncio.TaskGroup().__aenter__()
            # Left without the owner's exception: a TaskGroup would wrap it into a group.
            stack.push_async_callback(tasks.__aexit__, None, None, None)
            stack.callback(tasks.create_task(self._follow(reader)).cancel)
            if self._dead_letters is not None:
                stack.callback(tasks.create_task(self._bury_rubbish(self._dead_letters)).cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(exc_type, exc, tb)

    def latest(self, message_type: type[M]) -> tuple[M, int] | None:
        """The newest message of a type and its offset (of a `TrainerStart`: its lineage); None if there is none.

        Newest: by (lineage, version) where a message has them, else the last one written.
        """
        return self._facts.latest(message_type)

    def all(self, message_type: type[M]) -> dict[str, M]:
        """The newest message of a type by key."""
        return self._facts.all(message_type)

    def placed(self, message_type: type[M]) -> list[tuple[M, int]]:
        """The newest message of each key of a type, with its offset."""
        return self._facts.placed(message_type)

    def has_read(self, offset: int) -> bool:
        """Whether the record at ``offset`` was read, and with it all that the broker had when it last answered.

        So whatever compaction removed below ``offset`` is known by the newer record that replaced it.
        """
        consumer = self._consumer
        if consumer is None or self._partition not in consumer.assignment():  # the topic may be gone
            return False
        end: int | None = consumer.highwater(self._partition)
        return end is not None and self._read_to > offset and self._read_to >= end

    async def wait_for_change(self, timeout_s: float) -> bool:
        """Wait until something has changed since this asyncio task last waited here; False after ``timeout_s``.

        What changes between two calls is not missed: the second one returns at once.
        """
        task = asyncio.current_task()
        assert task is not None
        seen = self._seen.get(task, self._changes_at_start)
        try:
            async with asyncio.timeout(timeout_s):
                while self._changes == seen:
                    await self._changed.wait()
        except TimeoutError:
            return False
        self._seen[task] = self._changes
        return True

    async def _read_to_end(self, consumer: AIOKafkaConsumer, reader: SteadyReader) -> None:
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                end = (await consumer.end_offsets([self._partition]))[self._partition]
                while await consumer.position(self._partition) < end:
                    await self._read(reader)
        except (TimeoutError, KafkaError) as error:
            raise TransientError(
                f"topic {self._partition.topic!r} could not be read to its end within {READ_DEADLINE_S:.0f} s "
                f"({error!r}); check that the broker is well"
            ) from error

    async def _follow(self, reader: SteadyReader) -> None:
        while True:
            try:
                await self._read(reader)
            except KafkaError as error:
                logger.warning("topic %s cannot be read now: %r", self._partition.topic, error)
                await asyncio.sleep(RETRY_S)

    async def _read(self, reader: SteadyReader) -> None:
        records = await reader.read(timeout_s=POLL_S)
        for record in records:
            self._take(record)
            self._read_to = record.offset + 1
        if records:
            self._changes += 1
            self._changed.set()
            self._changed = asyncio.Event()

    def _take(self, record: Record) -> None:
        key = (record.key or b"").decode(errors="replace")
        if record.value is None:
            self._facts.forget(key)
            return
        try:
            message = decode_record(record, *CONTROL_TYPES)
            check_key(key, message)
        except InvalidMessageError as error:
            logger.warning("control record %s is passed over: %s", record_place(record), error)
            self._pass_over(key, record, error)
            return
        self._facts.learn(key, record.offset, message)

    def _pass_over(self, key: str, record: Record, error: InvalidMessageError) -> None:
        if self._dead_letters is not None and key not in self._rubbish_keys and len(self._rubbish_keys) < MAX_BURIED:
            self._rubbish_keys.add(key)
            self._rubbish.put_nowait(_Rubbish(record, error))

    async def _bury_rubbish(self, dead_letters: DeadLetterOffice) -> None:
        """Beside the following, which must not wait for it. What is left at the end is met again at the next start."""
        while True:
            rubbish = await self._rubbish.get()
            await dead_letters.bury(rubbish.record, rubbish.error)
