"""The caller's side of tool calls: send, resend, and wait for the one answer.

Duty: give each call its answer or a TransientError when its deadline has passed; the caller owns time-out and retry.

Invariants: the position in the reply partition is fixed before the first call leaves, so no answer is missed. Callers
may share a partition: answers to others are recognised by ``call_id`` and left alone. A time-out is never an answer.

Broker gone: calls wait for it, and their deadlines are put off by the time it was away, up to ``MAX_PUT_OFF_S``.

Crash: the next owner of the task sends the same call under the same id and gets the stored answer.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka's consumer is annotated in part only)

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from rollstream.schemas.errors import InvalidMessageError, TransientError
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.transport.clients import require_topics, start_consumer, stop_consumer
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import Record, decode_record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.unreadable import SteadyReader

logger = logging.getLogger(__name__)

RESEND_AFTER_S = 5.0
LONGEST_RESEND_S = 60.0
ANSWER_GRACE_S = 2.0
"""An answer given at the last moment still has to travel."""
AWAY_AFTER_S = 2.0
"""A send that takes longer has waited for a broker that was away."""
MAX_PUT_OFF_S = 600.0
MAX_PENDING_CALLS = 4096
FETCH_TIMEOUT_S = 1.0
RETRY_PAUSE_S = 0.5


@dataclass
class ToolClientStats:
    """Counters since the start."""

    calls: int = 0
    answers: int = 0
    resent: int = 0
    unanswered: int = 0
    foreign_results: int = 0
    """Answers to other callers of the same partition, or to calls that were answered or given up before."""


@dataclass
class _Waiting:
    answer: asyncio.Future[ToolResult]
    callers: int = 0


@dataclass
class PendingCalls:
    """Calls that wait for their answer, by id. Two callers of one id get the same answer."""

    _waiting: dict[str, _Waiting] = field(default_factory=dict[str, _Waiting])

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(self, call_id: str) -> asyncio.Future[ToolResult]:
        """The answer to come; give it back with ``forget``."""
        waiting = self._waiting.get(call_id)
        if waiting is None:
            waiting = self._waiting[call_id] = _Waiting(asyncio.get_running_loop().create_future())
        waiting.callers += 1
        return waiting.answer

    def expect_another(self, call_id: str) -> asyncio.Future[ToolResult]:
        """The answer after one that does not count."""
        waiting = self._waiting[call_id]
        if waiting.answer.done():
            waiting.answer = asyncio.get_running_loop().create_future()
        return waiting.answer

    def forget(self, call_id: str) -> None:
        """One caller no longer waits."""
        waiting = self._waiting[call_id]
        waiting.callers -= 1
        if waiting.callers == 0:
            del self._waiting[call_id]

    def answer(self, result: ToolResult) -> bool:
        """Hand an answer over. False: nobody waits for it."""
        waiting = self._waiting.get(result.call_id)
        if waiting is None or waiting.answer.done():
            return False
        waiting.answer.set_result(result)
        return True


class ToolClient:
    """An async context manager; failures of its background task end the block it is used in.

    Args:
        kafka: where the topics are.
        worker_id: chooses the reply partition.
        resend_after_s: first pause before the same call is sent again; doubles up to a minute.
        max_pending: calls waiting at once; further ones wait for a place.
        clock: Unix seconds.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        worker_id: str,
        resend_after_s: float = RESEND_AFTER_S,
        max_pending: int = MAX_PENDING_CALLS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._kafka = kafka
        self._resend_after_s = resend_after_s
        self._clock = clock
        self._topic = kafka.topic("tool-results")
        self._partition = zlib.crc32(worker_id.encode()) % kafka.topics["tool-results"].partitions
        self._publisher = Publisher(kafka, profile="rpc")
        self._dead_letters = DeadLetterOffice(kafka, role="tool-client", worker_id=worker_id)
        self._places = asyncio.Semaphore(max_pending)
        self._pending = PendingCalls()
        self._stack = AsyncExitStack()
        self.stats = ToolClientStats()

    async def __aenter__(self) -> ToolClient:
        async with AsyncExitStack() as stack:
            await require_topics(self._kafka, self._topic)
            await stack.enter_async_context(self._publisher)
            await stack.enter_async_context(self._dead_letters)
            consumer = await start_consumer(self._kafka, auto_offset_reset="latest")
            stack.push_async_callback(stop_consumer, consumer)
            await self._take_position(consumer)
            group = asyncio.TaskGroup()
            await group.__aenter__()
            reader = group.create_task(self._read_answers(consumer))

            async def end_reading(
                _: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
            ) -> bool | None:
                # The group is told only of a cancellation, which may be its own doing; it would wrap anything else.
                reader.cancel()
                told = exc if isinstance(exc, asyncio.CancelledError) else None
                return await group.__aexit__(type(told) if told else None, told, tb if told else None)

            stack.push_async_exit(end_reading)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(exc_type, exc, tb)

    @property
    def reply_partition(self) -> int:
        """Partition of `tool-results` where the answers arrive."""
        return self._partition

    async def call(self, call: ToolCall, toolset: str) -> ToolResult:
        """Send the call, again and again, until it is answered; ``reply_topic`` and ``reply_partition`` are filled in.

        Safe to repeat: the tool worker knows the call by its id. Only the first sending may be marked ``is_first``.

        Raises:
            TransientError: no answer until shortly after the call's deadline; whether it has run is not known.
            SettingsError: there is no such toolset.
        """
        topic = self._kafka.topic(f"tool-calls.{toolset}")
        call = msgspec.structs.replace(call, reply_topic=self._topic, reply_partition=self._partition)
        self.stats.calls += 1
        try:
            allowed_s = max(0.0, call.deadline - self._clock()) + ANSWER_GRACE_S
            async with asyncio.timeout(allowed_s) as limit, self._places:
                answer = self._pending.expect(call.call_id)
                try:
                    return await self._until_answered(call, topic, answer, limit)
                finally:
                    self._pending.forget(call.call_id)
        except TimeoutError as error:
            self.stats.unanswered += 1
            raise TransientError(
                f"call {call.call_id!r} of tool {call.tool!r} was not answered by its deadline: does a tool worker of "
                f"toolset {toolset!r} run, and keep up?"
            ) from error

    async def _until_answered(
        self, call: ToolCall, topic: str, answer: asyncio.Future[ToolResult], limit: asyncio.Timeout
    ) -> ToolResult:
        pause_s, put_off_s = self._resend_after_s, 0.0
        while True:
            away_s = await self._send(call, topic, limit, MAX_PUT_OFF_S - put_off_s)
            put_off_s += away_s
            call = msgspec.structs.replace(call, is_first=False, deadline=call.deadline + away_s)
            done, _ = await asyncio.wait([answer], timeout=pause_s)
            if done and not (answer.result().status == "expired" and call.deadline > self._clock()):
                self.stats.answers += 1
                return answer.result()
            # Refused under a deadline that has been put off since: the next copy has the new one.
            answer = self._pending.expect_another(call.call_id)
            self.stats.resent += 1
            pause_s = min(LONGEST_RESEND_S, 2 * pause_s)

    async def _send(self, call: ToolCall, topic: str, limit: asyncio.Timeout, max_put_off_s: float) -> float:
        """Send with the time limit at rest; returns how long the broker was away, by which the limit is put off."""
        loop = asyncio.get_running_loop()
        ends_at, started = limit.when(), loop.time()
        limit.reschedule(None)
        await self._publisher.publish(call, topic=topic, key=call.session_id or call.call_id)
        took_s = loop.time() - started
        away_s = min(took_s, max_put_off_s) if took_s > AWAY_AFTER_S else 0.0
        limit.reschedule(None if ends_at is None else ends_at + away_s)
        return away_s

    async def _take_position(self, consumer: AIOKafkaConsumer) -> None:
        partition = TopicPartition(self._topic, self._partition)
        consumer.assign([partition])
        try:
            async with asyncio.timeout(self._kafka.start_timeout_s):
                await consumer.seek_to_end(partition)
                await consumer.position(partition)
        except (KafkaError, TimeoutError) as error:
            raise TransientError(
                f"partition {self._partition} of {self._topic!r} cannot be read: {error!r}; does the topic exist with "
                "the declared number of partitions ('rollstream topics check')?"
            ) from error

    async def _read_answers(self, consumer: AIOKafkaConsumer) -> None:
        reader = SteadyReader(consumer)
        while True:
            try:
                records = await reader.read(timeout_s=FETCH_TIMEOUT_S)
            except KafkaError as error:
                logger.warning("reading %s failed, will be repeated: %r", self._topic, error)
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            for record in records:
                await self._take(record)

    async def _take(self, record: Record) -> None:
        try:
            result = decode_record(record, ToolResult)
        except InvalidMessageError as error:
            logger.warning("record %d of %s is no tool result: %s", record.offset, record.topic, error)
            await self._dead_letters.bury(record, error)
            return
        if not self._pending.answer(result):
            self.stats.foreign_results += 1
