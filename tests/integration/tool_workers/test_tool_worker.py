"""Tool workers and their callers over a real broker."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rollstream.schemas import ids
from rollstream.schemas.control import WorkerStatus
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.tool_workers.service import run_tool_worker
from rollstream.tool_workers.settings import ToolWorkerSettings
from rollstream.transport.clients import start_consumer, start_producer
from rollstream.transport.control import ControlFollower
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.tool_client import ToolClient

pytestmark = pytest.mark.broker

SLOW_TOOLS = '''
import asyncio, pathlib
from rollstream.tool_workers.functions import tool

@tool
async def wait(seconds: float) -> str:
    """Wait."""
    await asyncio.sleep(seconds)
    return "waited"

@tool(is_idempotent=False)
def append(path: str) -> str:
    """Append a line."""
    with open(path, "a") as file:
        file.write("x\\n")
    return "appended"
'''


@pytest.fixture
def slow_tools(tmp_path: Path) -> str:
    file = tmp_path / "slow_tools.py"
    file.write_text(SLOW_TOOLS)
    return str(file)


@asynccontextmanager
async def running(kafka: KafkaSettings, **settings: Any) -> AsyncGenerator[asyncio.Event]:
    """A tool worker of this process; it drains when the block ends or the event is set."""
    stop = asyncio.Event()
    fields: dict[str, Any] = {"tools": ("calculator",), "worker_id": f"tools-{uuid.uuid4().hex[:8]}", **settings}
    async with asyncio.TaskGroup() as group:
        group.create_task(run_tool_worker(ToolWorkerSettings(**fields), kafka, stop))
        try:
            yield stop
        finally:
            stop.set()


def call(tool: str, arguments: str, **fields: Any) -> ToolCall:
    defaults: dict[str, Any] = {
        "call_id": uuid.uuid4().hex,
        "session_id": None,
        "turn": 0,
        "token": None,
        "deadline": time.time() + 30,
        "timeout_s": 10.0,
        "reply_topic": "",
        "reply_partition": 0,
    }
    return ToolCall(tool=tool, arguments=arguments, **(defaults | fields))


async def eventually(holds: Callable[[], bool]) -> None:
    """Look until it holds, for ten seconds at most; a client has counters and no events."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 -- see above
            await asyncio.sleep(0.01)


async def records(kafka: KafkaSettings, short: str, count: int) -> list[Any]:
    """The first records of a topic."""
    consumer = await start_consumer(kafka, kafka.topic(short), auto_offset_reset="earliest")
    found: list[Any] = []
    try:
        async with asyncio.timeout(20):
            while len(found) < count:
                for batch in (await consumer.getmany(timeout_ms=200)).values():
                    found += batch
    finally:
        await consumer.stop()
    return found


async def test_calls_are_answered_in_parallel_to_the_one_who_asked(kafka: KafkaSettings) -> None:
    async with running(kafka), ToolClient(kafka, worker_id="a") as first, ToolClient(kafka, worker_id="b") as second:
        clients = [first, second]
        answers = await asyncio.gather(
            *(clients[n % 2].call(call("calculator", f'{{"expression": "{n} + 1"}}'), "default") for n in range(50))
        )
    assert [answer.content for answer in answers] == [str(n + 1) for n in range(50)]


async def test_callers_on_one_reply_partition_leave_each_others_answers_alone(kafka: KafkaSettings) -> None:
    async with (
        running(kafka),
        ToolClient(kafka, worker_id="a") as first,
        ToolClient(kafka, worker_id="a") as second,
    ):
        assert first.reply_partition == second.reply_partition
        answers = await asyncio.gather(
            first.call(call("calculator", '{"expression": "1"}'), "default"),
            second.call(call("calculator", '{"expression": "2"}'), "default"),
        )
        assert [answer.content for answer in answers] == ["1", "2"]
        await eventually(lambda: first.stats.foreign_results + second.stats.foreign_results == 2)


async def test_a_call_waits_for_a_worker_and_is_answered_when_one_comes(kafka: KafkaSettings) -> None:
    async with ToolClient(kafka, worker_id="a", resend_after_s=0.1) as client, asyncio.TaskGroup() as group:
        waiting = group.create_task(client.call(call("calculator", '{"expression": "6 * 7"}'), "default"))
        await eventually(lambda: client.stats.resent >= 2)
        async with running(kafka):
            assert (await waiting).content == "42"


async def test_a_call_that_nobody_answers_is_given_up_after_its_deadline(kafka: KafkaSettings) -> None:
    async with ToolClient(kafka, worker_id="a", resend_after_s=0.1) as client:
        with pytest.raises(TransientError, match="not answered by its deadline"):
            await client.call(call("calculator", '{"expression": "1"}', deadline=time.time() - 1.9), "default")
        assert client.stats.unanswered == 1
        with pytest.raises(SettingsError, match=r"'tool-calls\.other' is not declared"):
            await client.call(call("calculator", "{}"), "other")


@pytest.mark.sandbox
async def test_a_session_keeps_its_files_and_another_worker_does_not_have_it(kafka: KafkaSettings) -> None:
    async with ToolClient(kafka, worker_id="a") as client:
        first = call("bash", '{"command": "echo kept > note"}', session_id="s")
        second = call("python", '{"code": "print(open(\'note\').read())"}', session_id="s", turn=1)
        async with running(kafka, tools=("bash", "python")):
            answer = await client.call(first, "default")
            assert (answer.status, answer.content) == ("ok", "(no output)")
            assert answer.incarnation is not None
            token = ids.session_token(answer.incarnation, [first.call_id])
            assert answer.token == token
            read = call("python", second.arguments, session_id="s", turn=1, token=token)
            assert (await client.call(read, "default")).content == "kept\n\n"
            assert (await client.call(read, "default")).incarnation == answer.incarnation
        async with running(kafka, tools=("bash", "python")):
            lost = call("bash", '{"command": "cat note"}', session_id="s", turn=1, token=token)
            assert (await client.call(lost, "default")).status == "session_lost"


async def test_sessions_of_partitions_that_move_are_lost_there_and_go_on_where_they_are(kafka: KafkaSettings) -> None:
    bash = {"tools": ("bash",), "isolation": "unsafe-local"}
    names = [f"s{number}" for number in range(8)]
    ran: dict[str, list[str]] = {name: [] for name in names}
    boxes: dict[str, str | None] = dict.fromkeys(names)

    async def go_on(client: ToolClient, name: str) -> bool:
        token = ids.session_token(boxes[name] or "", ran[name]) if ran[name] else None
        each = call("bash", '{"command": "echo x >> f; wc -l < f"}', session_id=name, turn=len(ran[name]), token=token)
        answer = await client.call(each, "default")
        if answer.status == "session_lost":
            return False
        assert boxes[name] in (None, answer.incarnation)
        ran[name].append(each.call_id)
        boxes[name] = answer.incarnation
        assert answer.content.strip() == str(len(ran[name]))
        return True

    async with ToolClient(kafka, worker_id="a", resend_after_s=0.5) as client, running(kafka, **bash):
        assert all([await go_on(client, name) for name in names])
        lost: list[str] = []
        async with running(kafka, **bash), asyncio.timeout(30):
            while not lost:
                lost = [name for name in names if not await go_on(client, name)]
        assert 0 < len(lost) < len(names)
        assert all([await go_on(client, name) for name in names])


async def test_garbage_is_buried_and_the_next_call_answered(kafka: KafkaSettings) -> None:
    producer = await start_producer(kafka, profile="durable")
    await producer.send_and_wait(kafka.topic("tool-calls.default"), b"\xff\x00garbage", key=b"k")
    await producer.stop()
    async with Publisher(kafka, profile="durable") as publisher:
        elsewhere = call("calculator", '{"expression": "1"}', reply_topic="somewhere-else")
        await publisher.publish(elsewhere, topic=kafka.topic("tool-calls.default"), key="k")
    async with running(kafka), ToolClient(kafka, worker_id="a") as client:
        assert (await client.call(call("calculator", '{"expression": "1"}'), "default")).status == "ok"
        letters = [decode_record(record, DeadLetter) for record in await records(kafka, "dead-letters", 2)]
    assert {letter.error_type for letter in letters} == {"UnsupportedSchemaError", "InvalidMessageError"}
    assert {letter.origin_topic for letter in letters} == {kafka.topic("tool-calls.default")}


async def test_garbage_among_the_results_is_buried_by_the_caller(kafka: KafkaSettings) -> None:
    async with running(kafka), ToolClient(kafka, worker_id="a") as client:
        producer = await start_producer(kafka, profile="durable")
        await producer.send_and_wait(kafka.topic("tool-results"), b"garbage", partition=client.reply_partition)
        await producer.stop()
        assert (await client.call(call("calculator", '{"expression": "1"}'), "default")).status == "ok"
        (letter,) = [decode_record(record, DeadLetter) for record in await records(kafka, "dead-letters", 1)]
    assert (letter.role, letter.value) == ("tool-client", b"garbage")


async def test_a_worker_that_is_asked_to_stop_finishes_what_runs(kafka: KafkaSettings, slow_tools: str) -> None:
    async with ToolClient(kafka, worker_id="a", resend_after_s=0.2) as client, asyncio.TaskGroup() as group:
        async with running(kafka, tools=(slow_tools, "calculator")) as stop:
            await client.call(call("calculator", '{"expression": "1"}'), "default")
            waiting = group.create_task(client.call(call("wait", '{"seconds": 1.0}'), "default"))
            await eventually(lambda: client.stats.resent >= 1)  # the first copy has been fetched by then, and runs
            stop.set()
        assert (await waiting).content == "waited"


async def test_a_harmful_call_runs_once_and_a_repeated_one_of_unknown_outcome_not_at_all(
    kafka: KafkaSettings, slow_tools: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    arguments = f'{{"path": "{log}"}}'
    async with ToolClient(kafka, worker_id="a") as client:
        once = call("append", arguments)
        async with running(kafka, tools=(slow_tools,)):
            assert (await client.call(once, "default")).content == "appended"
            assert (await client.call(once, "default")).content == "appended"
        async with running(kafka, tools=(slow_tools,)):
            again = call("append", arguments, call_id=once.call_id, is_first=False)
            assert (await client.call(again, "default")).status == "outcome_unknown"
    assert log.read_text() == "x\n"


async def test_answered_calls_are_not_delivered_again(kafka: KafkaSettings) -> None:
    async with ToolClient(kafka, worker_id="a") as client:
        for _ in range(2):
            async with running(kafka):
                await client.call(call("calculator", '{"expression": "1"}'), "default")
    results = [decode_record(record, ToolResult) for record in await records(kafka, "tool-results", 2)]
    assert len(results) == len({result.call_id for result in results}) == 2


async def test_a_worker_says_what_it_does_and_when_it_leaves(kafka: KafkaSettings) -> None:
    async with running(kafka, worker_id="w"), ToolClient(kafka, worker_id="a") as client:
        await client.call(call("calculator", '{"expression": "1"}'), "default")
    async with ControlFollower(kafka) as control:
        (status,) = control.all(WorkerStatus).values()
    assert (status.worker_id, status.role, status.state, status.finished) == ("w", "tool-worker", "stopped", 1)
    assert status.stats["calls_ok"] == 1


async def test_what_goes_wrong_in_a_block_leaves_it_unchanged(kafka: KafkaSettings) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with ToolClient(kafka, worker_id="a"):
            raise ValueError("mine")
