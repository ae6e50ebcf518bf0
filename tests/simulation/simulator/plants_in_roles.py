"""Planted bugs in workers, tools, transport and trainer."""
# pyright: reportPrivateUsage=false  -- a bug is planted inside of what it breaks

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from rollstream.rollout_workers import episode as episodes
from rollstream.rollout_workers import tool_calling
from rollstream.rollout_workers.episode_pool import EpisodePool
from rollstream.rollout_workers.service import RolloutWorker
from rollstream.rollout_workers.suspects import SuspectGate
from rollstream.rollout_workers.tool_calling import Observation, ToolCalls, ToolSession
from rollstream.schemas.errors import TransientError
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.tool_workers.call_handling import CallHandler
from rollstream.tool_workers.sessions import Session, SessionLedger
from rollstream.trainers.batch_forming import BatchFormer
from rollstream.trainers.groups import ArrivingGroup, GroupAssembler
from rollstream.trainers.stream_state import StreamState
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.offsets import OffsetTracker
from rollstream.transport.publisher import Publisher, RecordPlace
from rollstream.transport.tool_client import ToolClient
from simulator.stand_ins import replaced


@contextmanager
def suspects_together() -> Iterator[None]:
    """Suspects run beside one another."""
    passed = SuspectGate.passed

    @asynccontextmanager
    async def pass_all(self: SuspectGate, *, is_suspect: bool) -> Any:
        async with passed(self, is_suspect=False) as clear:
            yield clear

    with replaced(SuspectGate, "passed", pass_all):
        yield


@contextmanager
def clock_during_replay() -> Iterator[None]:
    """The wall clock of an episode begins anew in each worker and cuts wherever it has come to."""
    generate, answer = episodes.Episode.generate, episodes.Episode.call_tools

    def check(self: Any) -> None:
        started = vars(self).setdefault("_planted_start", self._services.monotonic())
        if self._services.monotonic() - started > self.task.limits.wall_clock_s * 0.2:
            raise episodes.EpisodeCut("wall_clock")

    async def generate_by_clock(self: Any) -> Any:
        check(self)
        return await generate(self)

    async def answer_by_clock(self: Any, requests: Any) -> Any:
        check(self)
        return await answer(self, requests)

    with replaced(episodes.Episode, "generate", generate_by_clock), replaced(episodes.Episode, "call_tools", answer_by_clock):
        yield


@contextmanager
def finished_at_once() -> Iterator[None]:
    """A record is finished when it is begun."""
    handle = RolloutWorker._handle

    async def handle_finished(self: RolloutWorker, record: Any) -> bool:
        self._intake.finished(TopicPartition(record.topic, record.partition), record.offset)
        return await handle(self, record)

    with replaced(RolloutWorker, "_handle", handle_finished):
        yield


@contextmanager
def commit_past_running() -> Iterator[None]:
    """What was read last is committed."""
    with replaced(OffsetTracker, "committable", property(lambda self: self.next_offset)):
        yield


@contextmanager
def lost_not_abandoned() -> Iterator[None]:
    """Episodes of partitions that left go on."""
    with replaced(EpisodePool, "abandon", lambda self, partitions: None):
        yield


@contextmanager
def letters_not_written() -> Iterator[None]:
    """What cannot be read is passed over."""

    async def bury(self: DeadLetterOffice, record: Any, error: Any, **_: Any) -> RecordPlace:
        return RecordPlace("", 0, 0)

    with replaced(DeadLetterOffice, "bury", bury):
        yield


@contextmanager
def sends_not_repeated() -> Iterator[None]:
    """A send that fails is taken as one that has arrived."""

    async def send(self: Publisher, sending: Any, record: Any) -> RecordPlace:
        try:
            future = await self._producer.send(
                sending.topic, record.value, sending.key, sending.partition, headers=list(record.headers)
            )
            where = await future
        except KafkaError:
            return RecordPlace(sending.topic, sending.partition or 0, 0)
        return RecordPlace(where.topic, where.partition, where.offset)

    with replaced(Publisher, "_send_until_acknowledged", send):
        yield


@contextmanager
def session_named_by_task() -> Iterator[None]:
    """All attempts of a task share a session."""
    prepare = ToolCalls.__init__

    def init(self: ToolCalls, task: Any, birth: int, *arguments: Any, **more: Any) -> None:
        prepare(self, task, 0, *arguments, **more)

    with replaced(ToolCalls, "__init__", init):
        yield


@contextmanager
def sequence_instead_of_token() -> Iterator[None]:
    """A call is taken if it is of the present turn or the next."""

    def takes(self: Session, call: ToolCall) -> bool:
        if call.turn == self.turn:
            return True
        if call.turn != self.turn + 1:
            return False
        self.base, self.turn = call.token, call.turn
        self.results.clear()
        return True

    with replaced(Session, "takes", takes):
        yield


@contextmanager
def no_session_check() -> Iterator[None]:
    """A session that is not known is begun, one that is known takes everything."""
    admit = SessionLedger.admit

    def admit_all(self: SessionLedger, call: ToolCall, **more: Any) -> Any:
        session = self._sessions.get(call.session_id or "")
        if session is None:
            return admit(self, msgspec.structs.replace(call, token=None), **more)
        if call.turn != session.turn:
            session.turn, session.base = call.turn, call.token
            session.results.clear()
        return admit(self, msgspec.structs.replace(call, token=session.base), **more)

    with replaced(SessionLedger, "admit", admit_all):
        yield


@contextmanager
def any_sandbox() -> Iterator[None]:
    """Nobody asks which sandbox has answered."""
    with replaced(ToolSession, "check", lambda self, answers: None):
        yield


@contextmanager
def no_stored_results() -> Iterator[None]:
    """A call that is sent again runs again."""
    complete = SessionLedger.complete

    def forget(self: SessionLedger, call: ToolCall, result: ToolResult, **more: Any) -> ToolResult:
        completed = complete(self, call, result, **more)
        session = self._sessions.get(call.session_id or "")
        if session is not None:
            session.results.clear()
        return completed

    with replaced(SessionLedger, "complete", forget):
        yield


@contextmanager
def timeout_becomes_data() -> Iterator[None]:
    """A call that is not answered is answered by ourselves."""
    run_one = ToolCalls._run_one

    async def answer(self: ToolCalls, *arguments: Any, **more: Any) -> Observation:
        try:
            return await run_one(self, *arguments, **more)
        except tool_calling.SessionLostError:
            raise
        except TransientError as error:
            return Observation(status="error", content=f"Error: {error}")

    with replaced(ToolCalls, "_run_one", answer):
        yield


@contextmanager
def payment_not_committed_first() -> Iterator[None]:
    """Calls that must not run twice run before their record is committed."""
    handle: Callable[..., Any] = CallHandler.handle

    async def handle_at_once(self: CallHandler, call: ToolCall, commit_first: Any, **more: Any) -> None:
        async def committed() -> bool:
            return True

        await handle(self, call, committed, **more)

    with replaced(CallHandler, "handle", handle_at_once):
        yield


@contextmanager
def every_copy_is_first() -> Iterator[None]:
    """Copies of a call that may have run are marked as the first too."""
    send: Callable[..., Any] = ToolClient._send

    async def send_first(self: ToolClient, call: ToolCall, *arguments: Any) -> None:
        await send(self, msgspec.structs.replace(call, is_first=True), *arguments)

    with replaced(ToolClient, "_send", send_first):
        yield


@contextmanager
def _changed_state(change: Callable[[BatchFormer, StreamState], StreamState]) -> Iterator[None]:
    state_of = BatchFormer.state
    with replaced(BatchFormer, "state", lambda self, *args, **more: change(self, state_of(self, *args, **more))):
        yield


@contextmanager
def checkpoint_without_closed() -> Iterator[None]:
    """A checkpoint does not know which groups are closed."""
    with _changed_state(lambda _, state: msgspec.structs.replace(state, closed={})):
        yield


@contextmanager
def checkpoint_at_fetch() -> Iterator[None]:
    """A checkpoint goes on where reading had come to."""
    with _changed_state(lambda former, state: msgspec.structs.replace(state, positions=dict(former.read_to))):
        yield


@contextmanager
def last_record_wins() -> Iterator[None]:
    """A later record of a trajectory replaces the first."""
    add: Callable[..., Any] = GroupAssembler.add

    def add_last(self: GroupAssembler, trajectory: Any, *arguments: Any, **more: Any) -> Any:
        arrival = add(self, trajectory, *arguments, **more)
        for group in [*self.open(), *self.ready()]:
            _replace_member(group, trajectory)
        return arrival

    with replaced(GroupAssembler, "add", add_last):
        yield


def _replace_member(group: ArrivingGroup, trajectory: Any) -> None:
    if group.group_id == trajectory.group_id and trajectory.member_index in group.members:
        group.members[trajectory.member_index] = trajectory
