"""Planted bugs in the journal and in what rollout workers do with it."""
# pyright: reportPrivateUsage=false, reportUnknownLambdaType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingParameterType=false
# (a bug is planted inside of what it breaks, under whatever types that has)

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from simulator.stand_ins import replaced

from rollstream.rollout_workers import task_in_hand
from rollstream.rollout_workers.effects import AttemptIdentity, EffectLog, EffectSequence
from rollstream.rollout_workers.task_in_hand import TaskInHand
from rollstream.schemas.codec import EncodedRecord
from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.journal import JournalRecord, TerminalRecord
from rollstream.transport.journal.currency import Currency
from rollstream.transport.journal.journal import held
from rollstream.transport.journal.keeper import JournalKeeper
from rollstream.transport.journal.owned_partition import OwnedPartition
from rollstream.transport.journal.partition_fold import PartitionFold
from rollstream.transport.journal.task_state import TaskState


def _fold_own(journal: OwnedPartition, offset: int, record: JournalRecord) -> TaskState:
    """As if the record had been read."""
    position = journal.fold.position
    journal.fold.apply(offset, record)
    journal.fold.position = position
    state = journal.state(record.trajectory_id)
    assert state is not None
    return state


@contextmanager
def acknowledged_is_counted() -> Generator[None]:
    """The broker's word is enough: nothing is read back."""

    async def append(self: OwnedPartition, record: JournalRecord) -> TaskState:
        while (state := held(self.state(record.trajectory_id), record)) is None:
            _fold_own(self, await self._send(record), record)
        return state

    with replaced(OwnedPartition, "append", append):
        yield


@contextmanager
def own_memory_first() -> Generator[None]:
    """What was generated here is used, whatever the journal holds."""
    run_effect = EffectLog._run

    async def run(self: EffectLog, path: str, digest: bytes, perform: Callable[[], Awaitable[bytes]]) -> JournalRecord:
        kept: list[bytes] = []

        async def keep() -> bytes:
            kept.append(await perform())
            return kept[0]

        counted = await run_effect(self, path, digest, keep)
        return JournalRecord(
            kind="effect",
            trajectory_id=counted.trajectory_id,
            attempt=counted.attempt,
            key=path,
            writer=self._writer,
            birth=counted.birth,
            digest=digest,
            payload=kept[0],
        )

    with replaced(EffectLog, "_run", run):
        yield


_background: set[asyncio.Future[int]] = set()


@contextmanager
def journal_not_awaited() -> Generator[None]:
    """Records are on their way; that is enough."""
    append_record = OwnedPartition.append

    async def append(self: OwnedPartition, record: JournalRecord) -> TaskState:
        if record.kind == "start":
            return await append_record(self, record)
        state = held(self.state(record.trajectory_id), record)
        if state is not None:
            return state
        _background.add(asyncio.ensure_future(self._send(record)))
        return _fold_own(self, self.fold.position, record)

    with replaced(OwnedPartition, "append", append):
        yield
    _background.clear()


@contextmanager
def effects_not_awaited() -> Generator[None]:
    """Effects are journaled beside what follows from them; starts and ends are awaited."""
    append_record = OwnedPartition.append

    async def append(self: OwnedPartition, record: JournalRecord) -> TaskState:
        if record.kind != "effect":
            return await append_record(self, record)
        _background.add(asyncio.ensure_future(self._send(record)))
        return _fold_own(self, self.fold.position, record)

    with replaced(OwnedPartition, "append", append):
        yield
    _background.clear()


@contextmanager
def tool_results_not_journaled() -> Generator[None]:
    """Only generations are worth it."""
    perform_effect = EffectSequence.perform

    async def perform(self: EffectSequence, kind: str, request: Any, result_type: Any, run: Any) -> Any:
        if kind != "tools":
            return await perform_effect(self, kind, request, result_type, run)
        return await run(self.reserve()), True

    with replaced(EffectSequence, "perform", perform):
        yield


async def _publish(task: TaskInHand, end: TerminalRecord) -> None:
    handler = task._handler
    record = EncodedRecord(end.value or b"", end.headers)
    await handler.publisher.publish(record, topic=handler.terminal_records.topic, key=end.key, partition=end.partition)


@contextmanager
def end_not_journaled() -> Generator[None]:
    """How a task ends is told, not written down."""
    append_record = TaskInHand._append

    async def append(self: TaskInHand, kind: Any, identity: AttemptIdentity, **more: Any) -> None:
        if kind == "end":
            await _publish(self, more["payload"])
            kind, more = "done", {}
        await append_record(self, kind, identity, **more)

    with replaced(TaskInHand, "_append", append):
        yield


@contextmanager
def published_before_end() -> Generator[None]:
    """The trajectory is out before the journal knows how the task ends."""
    append_record = TaskInHand._append

    async def append(self: TaskInHand, kind: Any, identity: AttemptIdentity, **more: Any) -> None:
        if kind == "end":
            await _publish(self, more["payload"])
        await append_record(self, kind, identity, **more)

    with replaced(TaskInHand, "_append", append):
        yield


@contextmanager
def done_before_published() -> Generator[None]:
    """`done` first, the trajectory then."""
    publish_end = TaskInHand._publish

    async def publish(self: TaskInHand, end: TerminalRecord) -> None:
        await self._append("done", self._begun)
        await publish_end(self, end)

    with replaced(TaskInHand, "_publish", publish):
        yield


@contextmanager
def look_then_act() -> Generator[None]:
    """Something else may happen between the look into the journal and the beginning of the effect."""
    run_effect = EffectLog._run

    async def run(self: EffectLog, path: str, digest: bytes, perform: Callable[[], Awaitable[bytes]]) -> JournalRecord:
        await asyncio.sleep(0.3)
        return await run_effect(self, path, digest, perform)

    with replaced(EffectLog, "_run", run):
        yield


@contextmanager
def replay_not_awaited() -> Generator[None]:
    """A partition is worked on while its journal is still being read, and nobody looks whether it has been."""
    whatever_its_age = Currency(lease_s=float("inf"))

    async def replay(self: JournalKeeper, partition: int, start: int, end: int) -> None:
        self._owned[partition] = OwnedPartition(
            PartitionFold(start), lambda record: self.send(partition, record), whatever_its_age
        )
        self._has_changed.set()

    with replaced(JournalKeeper, "replay", replay):
        yield


@contextmanager
def replay_from_the_end() -> Generator[None]:
    """A new owner begins to read where the journal ends."""
    replay_partition = JournalKeeper.replay

    async def replay(self: JournalKeeper, partition: int, start: int, end: int) -> None:
        await replay_partition(self, partition, end, end)

    with replaced(JournalKeeper, "replay", replay):
        yield


@contextmanager
def tail_at_the_end() -> Generator[None]:
    """When the assignment changes, every tail goes on at the end of its partition."""
    take_positions = JournalKeeper._take_positions

    def take(self: JournalKeeper, reader: Any) -> None:
        take_positions(self, reader)
        consumer: Any = self._consumer
        for place in consumer.assignment():
            consumer.seek(place, consumer.cluster.log(place).end)

    with replaced(JournalKeeper, "_take_positions", take):
        yield


@contextmanager
def floor_of_unfinished() -> Generator[None]:
    """The floor looks at unfinished tasks only."""

    def floor(self: PartitionFold, committed: int) -> int:
        states = [state for state in self.tasks.values() if state.task_offset >= committed and not state.is_done]
        return min((state.first_offset for state in states), default=self.position)

    with replaced(PartitionFold, "floor", floor):
        yield


@contextmanager
def floor_at_the_end() -> Generator[None]:
    """The floor is where reading has come to."""
    with replaced(PartitionFold, "floor", lambda self, committed: self.position):
        yield


@contextmanager
def forgotten_too_early() -> Generator[None]:
    """The first unfinished task is forgotten with those before it."""
    forget = PartitionFold.forget_below

    def forget_below(self: PartitionFold, committed: int) -> None:
        forget(self, committed + 1)

    with replaced(PartitionFold, "forget_below", forget_below):
        yield


@contextmanager
def failure_beats_result() -> Generator[None]:
    """A failed attempt ends, even if another worker's effect has succeeded in its place."""
    refusal_of = TaskState.refusal

    def refusal(self: TaskState, record: JournalRecord) -> str | None:
        found = refusal_of(self, record)
        return None if found is not None and "has succeeded" in found else found

    with replaced(TaskState, "refusal", refusal):
        yield


@contextmanager
def resumes_not_counted() -> Generator[None]:
    """Only fresh attempts count, not how often they were gone on with."""
    with replaced(TaskState, "unclean", property(lambda self: 0)):
        yield


@contextmanager
def start_after_body() -> Generator[None]:
    """A look at the body first, then the start is journaled."""
    begin = TaskInHand._started

    def started(self: TaskInHand, attempt: int) -> Any:
        with suppress(InvalidMessageError):
            task_in_hand.read_task(self._record, self._id)
        return begin(self, attempt)

    with replaced(TaskInHand, "_started", started):
        yield
