"""Doing something with letters: sending them again, dropping them.

Invariants: a plan is in the log, read back and found to hold, before the first of its tasks is sent; a letter is
resolved after what it became is acknowledged. So a replay may end anywhere and be repeated: it sends the same records
again, which readers know by their ids, and comes to the same end.
"""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import getpass
import logging
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Literal, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.dead_letters import DeadLetter, DeadLetterResolution
from rollstream.schemas.errors import TransientError
from rollstream.schemas.ids import group_partition
from rollstream.schemas.tasks import RolloutTask
from rollstream.transport.clients import start_producer, stop_producer
from rollstream.transport.control import control_key
from rollstream.transport.dead_letter_box.letters import BuriedLetter, DeadLetterBox, LetterId, ReplayPlan
from rollstream.transport.dead_letter_box.log import RESOLUTIONS_PARTITION, read_letters, read_resolutions
from rollstream.transport.dead_letter_box.replaying import (
    CopyLetter,
    Refusal,
    TaskLetter,
    assess,
    replay_plans,
    replayed_task,
)
from rollstream.transport.publisher import Publisher, RecordPlace
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import list_topics

IN_FLIGHT = 64
LETTERS_PER_RESOLUTION = 10_000

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReplayOffer:
    """What a replay would do.

    Attributes:
        begun: plans of earlier replays that are not known to be complete; they are carried out as they were made.
        plans: new plans.
        copies: trajectories to be appended again.
        refusals: letters that cannot be sent again.
    """

    begun: tuple[ReplayPlan, ...]
    plans: tuple[ReplayPlan, ...]
    copies: tuple[LetterId, ...]
    refusals: tuple[Refusal, ...]

    @property
    def tasks(self) -> int:
        """Tasks that would be sent."""
        return sum(len(plan.letters) for plan in (*self.begun, *self.plans))

    @property
    def letters(self) -> int:
        """Letters that would be sent again."""
        return self.tasks + len(self.copies)


class DeadLetterDesk:
    """An async context manager.

    Args:
        kafka: cluster and topics.
        box: what was read from the topic; learns of what is done here.
    """

    def __init__(self, kafka: KafkaSettings, box: DeadLetterBox) -> None:
        self._kafka = kafka
        self._box = box
        self._publisher = Publisher(kafka, profile="durable")
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> DeadLetterDesk:
        await self._stack.enter_async_context(self._publisher)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(exc_type, exc, tb)

    async def offer(self, selected: Sequence[BuriedLetter]) -> ReplayOffer:
        """Find out what sending these letters again means; changes nothing.

        Raises:
            TransientError: the broker gave nothing for a minute.
        """
        begun = {plan.run_id: plan for each in selected if (plan := self._unfinished_plan(each.id)) is not None}
        fresh = [each for each in selected if self._unfinished_plan(each.id) is None]
        largest = self._kafka.topics[RolloutTask.topic].max_value_bytes
        tasks: list[TaskLetter] = []
        copies: list[LetterId] = []
        refusals: list[Refusal] = []
        async for letter in read_letters(self._kafka, fresh):
            match assess(letter, self._kafka.prefix, max_task_bytes=largest):
                case TaskLetter() as task:
                    tasks.append(task)
                case CopyLetter() as copy:
                    copies.append(copy.id)
                case Refusal() as refusal:
                    refusals.append(refusal)
        return ReplayOffer(
            begun=tuple(begun.values()),
            plans=tuple(replay_plans(tasks, planned_at=time.time())),
            copies=tuple(sorted(copies)),
            refusals=tuple(sorted(refusals, key=lambda refusal: refusal.id)),
        )

    async def replay(self, offer: ReplayOffer) -> None:
        """Do what was offered. Safe to repeat, whatever interrupted it: repeat from reading the box.

        Raises:
            TransientError: not everything was acknowledged in time, or another replay took some of the letters.
        """
        for plan in [*offer.begun, *[await self._written_down(plan) for plan in offer.plans]]:
            await self._send_tasks(plan)
            await self._resolve("replayed", plan.letters)
        for copies in _parts(offer.copies, LETTERS_PER_RESOLUTION):
            await self._send_copies(copies)
            await self._resolve("replayed", copies)

    async def drop(self, letters: Iterable[LetterId]) -> None:
        """Mark letters as of no interest. They stay where they are. Safe to repeat.

        Raises:
            TransientError: not acknowledged in time.
        """
        for part in _parts(letters, LETTERS_PER_RESOLUTION):
            await self._resolve("dropped", part)

    def _unfinished_plan(self, letter_id: LetterId) -> ReplayPlan | None:
        return self._box.plan_of(letter_id) if self._box.state(letter_id) == "replaying" else None

    async def _written_down(self, plan: ReplayPlan) -> ReplayPlan:
        """The plan as the log has it: of two replays at once, the first one's holds, for both."""
        place = await self._append(
            DeadLetterResolution(
                state="replaying",
                letters=[letter.text for letter in plan.letters],
                run_id=plan.run_id,
                group_size=plan.group_size,
                resolved_at=plan.planned_at,
                resolved_by=_who(),
            )
        )
        await read_resolutions(self._kafka, self._box, place.offset + 1)
        holding = self._box.plan_of(plan.letters[0])
        if holding is None or holding.letters != plan.letters:
            raise TransientError(f"another replay has taken letters of {plan.run_id!r} meanwhile: begin again")
        return holding

    async def _send_tasks(self, plan: ReplayPlan) -> None:
        positions = {letter: position for position, letter in enumerate(plan.letters)}
        buried = [found for letter in plan.letters if (found := self._box.get(letter)) is not None]
        partitions = await self._partitions(RolloutTask.topic)
        sent, is_train = 0, True
        waiting: list[RolloutTask] = []
        async for letter in read_letters(self._kafka, buried):
            task = replayed_task(letter, plan, positions[LetterId.of(letter)])
            sent, is_train = sent + 1, task.is_train
            waiting.append(task)
            if len(waiting) == IN_FLIGHT:
                await self._send_all(waiting, partitions)
                waiting = []
        await self._send_all(waiting, partitions)
        if sent < len(plan.letters):
            lost = len(plan.letters) - sent
            logger.warning(
                "%d of %d letters of %s are older than the topic keeps", lost, len(plan.letters), plan.run_id
            )
        progress = ProducerProgress(
            run_id=plan.run_id,
            groups_emitted=plan.groups,
            group_size=plan.group_size,
            is_finished=True,
            updated_at=time.time(),
            is_train=is_train,
        )
        await self._publisher.publish(progress, key=control_key(progress))

    async def _send_all(self, tasks: Sequence[RolloutTask], partitions: int) -> None:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                partition = group_partition(task.group_id, partitions)
                group.create_task(self._publisher.publish(task, key=task.group_id, partition=partition))

    async def _send_copies(self, letters: Sequence[LetterId]) -> None:
        buried = [found for letter in letters if (found := self._box.get(letter)) is not None]
        producer = await start_producer(self._kafka)
        try:
            async for letter in read_letters(self._kafka, buried):
                await _append_again(producer, letter)
        finally:
            await stop_producer(producer)

    async def _partitions(self, short: str) -> int:
        name = self._kafka.topic(short)
        topics = {topic.name: topic.partitions for topic in await list_topics(self._kafka)}
        return topics.get(name, self._kafka.topics[short].partitions)

    async def _resolve(self, state: Literal["dropped", "replayed"], letters: Sequence[LetterId]) -> None:
        texts = [letter.text for letter in letters]
        resolution = DeadLetterResolution(state=state, letters=texts, resolved_at=time.time(), resolved_by=_who())
        await self._append(resolution)
        self._box.resolve(resolution)

    async def _append(self, resolution: DeadLetterResolution) -> RecordPlace:
        return await self._publisher.publish(resolution, key=resolution.letters[0], partition=RESOLUTIONS_PARTITION)


async def _append_again(producer: AIOKafkaProducer, letter: DeadLetter) -> None:
    """The same key, value and headers, to the same partition."""
    try:
        await producer.send_and_wait(
            letter.origin_topic, letter.value, letter.key, letter.origin_partition, headers=letter.headers
        )
    except KafkaError as error:
        raise TransientError(
            f"the record of letter {LetterId.of(letter).text!r} was not acknowledged ({error!r}): replay it again"
        ) from error


def _parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    waiting = iter(items)
    while part := list(islice(waiting, size)):
        yield part


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "?"
    return f"{user}@{socket.gethostname()}"
