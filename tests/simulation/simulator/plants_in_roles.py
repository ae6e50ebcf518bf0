"""Planted bugs in workers, tools, transport and trainer."""
# pyright: reportPrivateUsage=false, reportUnknownLambdaType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingParameterType=false
# (a bug is planted inside of what it breaks, under whatever types that has)

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from simulator.stand_ins import replaced

from rollstream.rollout_workers import episode as episodes
from rollstream.rollout_workers.episode_limits import EpisodeCut
from rollstream.rollout_workers.service import RolloutWorker
from rollstream.rollout_workers.suspects import SuspectGate
from rollstream.rollout_workers.tool_calling import Observation, ToolCalls, ToolSession
from rollstream.schemas.errors import SessionLostError, TransientError
from rollstream.schemas.tools import ToolCall
from rollstream.tool_workers.call_handling import CallHandler
from rollstream.tool_workers.sessions import Run, Session, SessionLedger
from rollstream.trainers.batch_forming import BatchFormer
from rollstream.trainers.stream_state import StreamState
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.intake import GroupIntake
from rollstream.transport.offsets import OffsetTracker
from rollstream.transport.publisher import Publisher, RecordPlace
from rollstream.transport.tool_client import ToolClient


@contextmanager
def suspects_together() -> Generator[None]:
    """Suspects run beside one another."""
    passed = SuspectGate.passed

    @asynccontextmanager
    async def pass_all(self: SuspectGate, *, is_suspect: bool) -> AsyncGenerator[Callable[[], None]]:
        async with passed(self, is_suspect=False) as clear:
            yield clear

    with replaced(SuspectGate, "passed", pass_all):
        yield


@contextmanager
def clock_during_replay() -> Generator[None]:
    """The wall clock of an episode begins anew in each worker and cuts wherever it has come to."""
    generate, answer = episodes.Episode.generate, episodes.Episode.call_tools

    def check(self: Any) -> None:
        started = vars(self).setdefault("_planted_start", self._services.monotonic())
        if self._services.monotonic() - started > self.task.limits.wall_clock_s * 0.2:
            raise EpisodeCut("wall_clock")

    async def generate_by_clock(self: Any) -> Any:
        check(self)
        return await generate(self)

    async def answer_by_clock(self: Any, requests: Any) -> Any:
        check(self)
        return await answer(self, requests)

    with (
        replaced(episodes.Episode, "generate", generate_by_clock),
        replaced(episodes.Episode, "call_tools", answer_by_clock),
    ):
        yield


@contextmanager
def finished_at_once() -> Generator[None]:
    """A record is finished when it is begun."""
    handle = RolloutWorker._handle

    async def handle_finished(self: RolloutWorker, record: Any) -> bool:
        self._intake.finished(TopicPartition(record.topic, record.partition), record.offset)
        return await handle(self, record)

    with replaced(RolloutWorker, "_handle", handle_finished):
        yield


@contextmanager
def commit_past_running() -> Generator[None]:
    """What was read last is committed."""
    with replaced(OffsetTracker, "committable", property(lambda self: self.next_offset)):
        yield


@contextmanager
def commits_go_back() -> Generator[None]:
    """Nobody asks what the group has committed."""

    commit = GroupIntake._commit

    async def commit_blindly(self: GroupIntake) -> None:
        consumer: Any = self._started
        known = dict(self._committed)

        async def committed(partition: TopicPartition) -> int:
            return known.get(partition, -1)

        with _shadowed(consumer, "committed", committed):
            await commit(self)

    with replaced(GroupIntake, "_commit", commit_blindly):
        yield


@contextmanager
def _shadowed(target: object, name: str, value: object) -> Generator[None]:
    vars(target)[name] = value
    try:
        yield
    finally:
        del vars(target)[name]


@contextmanager
def worked_on_before_ready() -> Generator[None]:
    """A fetch that outlived a partition's leaving and coming back is handed out."""
    with replaced(GroupIntake, "_is_due", lambda self, partition, records: True):
        yield


@contextmanager
def letters_not_written() -> Generator[None]:
    """What cannot be read is passed over."""

    async def bury(self: DeadLetterOffice, record: Any, error: Any, **_: Any) -> RecordPlace:
        return RecordPlace("", 0, 0)

    with replaced(DeadLetterOffice, "bury", bury):
        yield


@contextmanager
def sends_not_repeated() -> Generator[None]:
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
def session_named_by_task() -> Generator[None]:
    """All attempts of a task share a session."""
    prepare = ToolCalls.__init__

    def init(self: ToolCalls, task: Any, birth: int, *arguments: Any, **more: Any) -> None:
        prepare(self, task, 0, *arguments, **more)

    with replaced(ToolCalls, "__init__", init):
        yield


@contextmanager
def sequence_instead_of_token() -> Generator[None]:
    """A call is taken if it is of the present turn or the next, and nobody asks which sandbox has answered."""

    def takes(self: SessionLedger, session: Session, call: ToolCall) -> bool:
        if call.turn not in (session.turn, session.turn + 1):
            return False
        session.base, session.turn = call.token, call.turn
        return True

    with replaced(SessionLedger, "_takes", takes), any_sandbox():
        yield


@contextmanager
def no_session_check() -> Generator[None]:
    """A session that is not known is begun, one that is known takes everything; nobody asks which has answered."""
    admit = SessionLedger.admit

    def admit_all(self: SessionLedger, call: ToolCall, **more: Any) -> Any:
        is_known = (call.session_id or "") in self
        return admit(self, call if is_known else msgspec.structs.replace(call, token=None), **more)

    def takes(self: SessionLedger, session: Session, call: ToolCall) -> bool:
        session.base, session.turn = call.token, call.turn
        return True

    with replaced(SessionLedger, "admit", admit_all), replaced(SessionLedger, "_takes", takes), any_sandbox():
        yield


@contextmanager
def any_sandbox() -> Generator[None]:
    """Nobody asks which sandbox has answered."""
    with replaced(ToolSession, "check", lambda self, answers: None):
        yield


@contextmanager
def no_stored_results() -> Generator[None]:
    """A call that is sent again runs again."""
    known = SessionLedger._known

    def run_again(self: SessionLedger, session: Session, call: ToolCall, now: float) -> Any:
        if call.call_id in session.running:
            return known(self, session, call, now)
        session.running.add(call.call_id)
        return Run(session.incarnation)

    with replaced(SessionLedger, "_known", run_again):
        yield


@contextmanager
def timeout_becomes_data() -> Generator[None]:
    """A call that is not answered is answered by ourselves."""
    run_one = ToolCalls._run_one

    async def answer(self: ToolCalls, *arguments: Any, **more: Any) -> Observation:
        try:
            return await run_one(self, *arguments, **more)
        except SessionLostError:
            raise
        except TransientError as error:
            return Observation(status="error", content=f"Error: {error}")

    with replaced(ToolCalls, "_run_one", answer):
        yield


@contextmanager
def payment_not_committed_first() -> Generator[None]:
    """Calls that must not run twice run before their record is committed."""
    handle: Callable[..., Any] = CallHandler.handle

    async def handle_at_once(self: CallHandler, call: ToolCall, commit_first: Any, **more: Any) -> None:
        async def committed() -> bool:
            return True

        await handle(self, call, committed, **more)

    with replaced(CallHandler, "handle", handle_at_once):
        yield


@contextmanager
def every_copy_is_first() -> Generator[None]:
    """Copies of a call that may have run are marked as the first too."""
    send: Callable[..., Any] = ToolClient._send

    async def send_first(self: ToolClient, call: ToolCall, *arguments: Any) -> None:
        await send(self, msgspec.structs.replace(call, is_first=True), *arguments)

    with replaced(ToolClient, "_send", send_first):
        yield


@contextmanager
def _changed_state(change: Callable[[BatchFormer, StreamState], StreamState]) -> Generator[None]:
    state_of = BatchFormer.state
    with replaced(BatchFormer, "state", lambda self, *args, **more: change(self, state_of(self, *args, **more))):
        yield


@contextmanager
def checkpoint_without_closed() -> Generator[None]:
    """A checkpoint does not know which groups are closed."""
    with _changed_state(lambda _, state: msgspec.structs.replace(state, closed={})):
        yield


@contextmanager
def checkpoint_at_fetch() -> Generator[None]:
    """A checkpoint goes on where reading had come to."""
    with _changed_state(lambda former, state: msgspec.structs.replace(state, positions=dict(former.read_to))):
        yield
