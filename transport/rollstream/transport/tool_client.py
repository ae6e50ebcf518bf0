"""The caller's side of tool calls: send, resend, and wait for the one answer.

Duty: give each call its answer or a TransientError when its deadline has passed; the caller owns time-out and retry.

Invariants: the position in the reply partition is fixed before the first call leaves, so no answer is missed. Callers
may share a partition: answers to others are recognised by ``call_id`` and left alone. A time-out is never an answer. A
copy marked ``is_first`` is in the log at most once: when the fate of its sending is unknown, no later one is marked.

Broker gone: calls wait for it, and their deadlines are put off by the time it was away, up to ``MAX_PUT_OFF_S``. So
do they while the tool workers have no place for them (``busy``).

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
from dataclasses import dataclass
from types import TracebackType

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from rollstream.schemas.errors import InvalidMessageError, TransientError
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.transport.call_time import CallTime
from rollstream.transport.clients import require_topics, start_consumer, stop_consumer
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.pending_calls import PendingCalls
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import Record, decode_record
from rollstream.transport.session_ends import SessionEnds
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.unreadable import SteadyReader

logger = logging.getLogger(__name__)

RESEND_AFTER_S = 5.0
LONGEST_RESEND_S = 60.0
ANSWER_GRACE_S = 2.0
"""An answer given at the last moment still has to travel."""
LAST_LOOK_S = 1.0
"""Before a call is given up it is sent once more: the broker may have been away, or the answer lost."""
MAX_PUT_OFF_S = 1800.0
"""As long as a tool worker keeps an idle session: later answers could not be continued from."""
MAX_PENDING_CALLS = 4096
FETCH_TIMEOUT_S = 1.0
RETRY_PAUSE_S = 0.5


@dataclass
class ToolClientStats:
    """Counters since the start."""

    calls: int = 0
    answers: int = 0
    resent: int = 0
    busy: int = 0
    """Times a tool worker said that a call has to wait for a place."""
    unanswered: int = 0
    foreign_results: int = 0
    """Answers to other callers of the same partition, or to calls that were answered or given up before."""


class ToolClient:
    """An async context manager; failures of its background task end the block it is used in.

    Args:
        kafka: where the topics are.
        worker_id: chooses the reply partition.
        resend_after_s: first pause before the same call is sent again; doubles up to a minute.
        max_pending: calls waiting at once; further ones wait for a place.
        max_put_off_s: how long a broker may be away, or a call wait for a place, at the cost of nobody's deadline.
        clock: Unix seconds.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        worker_id: str,
        resend_after_s: float = RESEND_AFTER_S,
        max_pending: int = MAX_PENDING_CALLS,
        max_put_off_s: float = MAX_PUT_OFF_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._kafka = kafka
        self._resend_after_s = resend_after_s
        self._max_put_off_s = max_put_off_s
        self._clock = clock
        self._topic = kafka.topic("tool-results")
        self._partition = zlib.crc32(worker_id.encode()) % kafka.topics["tool-results"].partitions
        self._publisher = Publisher(kafka, profile="durable")
        self._dead_letters = DeadLetterOffice(kafka, role="tool-client", worker_id=worker_id)
        self._places = asyncio.Semaphore(max_pending)
        self._pending = PendingCalls()
        self._ends = SessionEnds(self._publisher)
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
            background = [group.create_task(self._read_answers(consumer)), group.create_task(self._ends.run())]

            async def end_reading(
                _: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
            ) -> bool | None:
                # The group is told only of a cancellation, which may be its own doing; it would wrap anything else.
                if exc is None:
                    await self._ends.flush()
                for task in background:
                    task.cancel()
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

        Safe to repeat: the tool worker knows the call by its id. Only the first sending of all may be marked
        ``is_first``; here it stays marked for one sending at most.

        Raises:
            TransientError: no answer until shortly after the call's deadline; whether it has run is not known.
            SettingsError: there is no such toolset.
        """
        topic = self._kafka.topic(f"tool-calls.{toolset}")
        call = msgspec.structs.replace(call, reply_topic=self._topic, reply_partition=self._partition)
        self.stats.calls += 1
        allowed_s = max(0.0, call.deadline - self._clock()) + ANSWER_GRACE_S
        now = asyncio.get_running_loop().time()
        time = CallTime(call.deadline, now + allowed_s, now, self._max_put_off_s, allowed_s)
        try:
            async with asyncio.timeout(allowed_s):
                await self._places.acquire()
            try:
                return await self._until_answered(call, topic, time)
            finally:
                self._places.release()
        except TimeoutError as error:
            self.stats.unanswered += 1
            cause = "it had to wait for a place in a full house" if time.was_busy else "its outcome is unknown"
            raise TransientError(
                f"call {call.call_id!r} of tool {call.tool!r} was not answered by its deadline; {cause}. Does a tool "
                f"worker of toolset {toolset!r} run, and keep up?"
            ) from error

    def end_session(self, session_id: str, toolset: str) -> None:
        """The session's attempt is over, and the journal says so: no call will ever come in it again.

        Returns at once; its tool worker is told within seconds, or not at all. Safe to repeat.

        Raises:
            SettingsError: there is no such toolset.
        """
        self._ends.tell(session_id, self._kafka.topic(f"tool-calls.{toolset}"))

    async def _until_answered(self, call: ToolCall, topic: str, time: CallTime) -> ToolResult:
        is_first = call.is_first and call.call_id not in self._pending
        self._pending.expect(call.call_id)
        try:
            pause_s = self._resend_after_s
            while True:
                call = msgspec.structs.replace(call, is_first=is_first, deadline=time.deadline)
                await self._send(call, topic, time)
                is_first = False
                answer = await self._answer_within(pause_s, call.call_id, time)
                if answer is not None:
                    self.stats.answers += 1
                    return answer
                self.stats.resent += 1
                pause_s = self._resend_after_s if time.was_busy else min(LONGEST_RESEND_S, 2 * pause_s)
        finally:
            self._pending.forget(call.call_id)

    async def _answer_within(self, pause_s: float, call_id: str, time: CallTime) -> ToolResult | None:
        """What comes until the call is to be sent again; None: nothing that settles it.

        Raises:
            TimeoutError: nothing, and the call's time is over.
        """
        loop = asyncio.get_running_loop()
        resend_at, left_s = loop.time() + pause_s, time.left_s(loop.time())
        limit_s = min(pause_s, left_s) if left_s > 0 else LAST_LOOK_S
        answer = self._pending.expected(call_id)
        while (await asyncio.wait([answer], timeout=limit_s))[0]:
            result = answer.result()
            is_early = result.status == "expired" and time.deadline > self._clock()
            if result.status == "expired" and time.was_busy and not is_early:
                raise TimeoutError
            if result.status != "busy" and not is_early:
                return result
            answer = self._pending.expect_another(call_id, than=answer)
            if is_early:  # refused under a deadline that has been put off since: the next copy has the new one
                return None
            self.stats.busy += 1
            time.busy(loop.time())
            left_s = time.left_s(loop.time())
            limit_s = max(0.0, min(resend_at - loop.time(), left_s))
        if left_s <= 0:
            raise TimeoutError
        return None

    async def _send(self, call: ToolCall, topic: str, time: CallTime) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        key = call.session_id or call.call_id
        limit_s = time.send_limit_s(began) + LAST_LOOK_S
        try:
            await self._publisher.publish(
                call, topic=topic, key=key, deadline_s=limit_s, is_repeatable=not call.is_first
            )
        except TransientError as error:
            if loop.time() - began >= limit_s:
                raise TimeoutError(str(error)) from error
            logger.warning("call %s may have been sent, it is repeated as not the first: %s", call.call_id, error)
        else:
            time.sent(began, loop.time())

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
