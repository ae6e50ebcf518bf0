"""Letters of every topic on a real broker: listed, shown, chosen, dropped, refused."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import json
import zlib
from base64 import b64decode
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from aiokafka import ConsumerRecord

from rollstream.cli.status import open_dead_letters
from rollstream.rollout_workers.engine_settings import ScriptedSettings
from rollstream.rollout_workers.service import run_rollout_worker
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas.errors import SettingsError
from rollstream.tool_workers.service import run_tool_worker
from rollstream.tool_workers.settings import ToolWorkerSettings
from rollstream.trainers import AsyncTrajectoryStream
from rollstream.trainers.settings import TrainedTopic
from rollstream.transport.clients import start_producer
from rollstream.transport.dead_letter_box.log import read_box
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

Call = Callable[..., Awaitable[Any]]
WORKER = "rollout-1"
BYTES = b"\xff\x00 rubbish \xfe"


@asynccontextmanager
async def everybody(kafka: KafkaSettings) -> AsyncGenerator[None]:
    """A rollout worker, a tool worker and a trainer of each topic of trajectories for as long as the block runs."""
    stop = asyncio.Event()
    rollout = RolloutWorkerSettings(engine=ScriptedSettings(), worker_id=WORKER, drain_s=5)
    tools = ToolWorkerSettings(tools=("calculator",), worker_id="tools-1", drain_s=5)

    async def train(topic: TrainedTopic) -> None:
        async with AsyncTrajectoryStream(kafka, trainer_id="trainer-1", topic=topic) as stream:
            async for _ in stream:
                pass

    async with asyncio.TaskGroup() as group:
        group.create_task(run_rollout_worker(rollout, kafka, stop))
        group.create_task(run_tool_worker(tools, kafka, stop))
        trainers = [group.create_task(train(topic)) for topic in get_args(TrainedTopic)]
        yield
        stop.set()
        for trainer in trainers:
            trainer.cancel()


async def until_listed(kafka: KafkaSettings, send: Callable[[], Awaitable[set[str]]]) -> set[str]:
    """Send until a record of every topic has its letter: some are heard by those only who listened before."""
    sent: set[str] = set()
    async with asyncio.timeout(60):
        while True:
            sent |= await send()
            listed = {each.id.short(kafka.prefix) for each in (await read_box(kafka)).wanted(["open"])}
            assert listed <= sent
            if {id_.partition("/")[0] for id_ in listed} == kafka.topics.keys():
                return listed


async def test_rubbish_on_every_topic_is_listed_with_cause_stack_and_place(
    kafka: KafkaSettings, dead_letters: Call, tmp_path: Path
) -> None:
    replies = zlib.crc32(WORKER.encode()) % kafka.topics["tool-results"].partitions
    places = {short: replies if short == "tool-results" else 0 for short in kafka.topics}
    producer = await start_producer(kafka)

    async def send() -> set[str]:
        attached = [("schema", b"Nonsense"), ("note", b"\x1b[31m")]
        acknowledged = [
            await producer.send_and_wait(kafka.topic(short), BYTES, b"key-1", partition, headers=attached)
            for short, partition in places.items()
        ]
        return {f"{at.topic.removeprefix(kafka.prefix)}/{at.partition}/{at.offset}" for at in acknowledged}

    async with everybody(kafka):
        await until_listed(kafka, send)
    await producer.stop()

    roles = {
        "tasks": "rollout-worker",
        "journal": "rollout-worker",
        "tool-calls.default": "tool-worker",
        "tool-results": "tool-client",
        "trajectories": "trainer",
        "scored-trajectories": "trainer",
        "control": None,
        "dead-letters": "reader of dead-letters",
    }
    assert roles.keys() == kafka.topics.keys()
    for short, role in roles.items():
        found = await lines(dead_letters, "list", "--topic", short)
        assert found, short
        assert {each["error_type"] for each in found} == {"UnsupportedSchemaError"}
        assert {each["role"] for each in found} == {role} if role else {"rollout-worker", "trainer"}
        assert all(each["topic"] == kafka.topic(short) and each["state"] == "open" for each in found)
        shown = (await dead_letters("show", found[-1]["id"], "--raw", str(tmp_path / "raw"))).output
        assert f"offset {found[-1]['offset']}" in shown
        assert "decode_record" in shown, "the stack"
        assert "header schema is 'Nonsense'" in shown
        assert "key-1" in shown
        assert "ff 00 20 72 75 62 62 69 73 68 20 fe" in shown
        assert "\x1b" not in shown
        assert (tmp_path / "raw").read_bytes() == BYTES
    assert await open_dead_letters(kafka) == len(await lines(dead_letters, "list"))


async def lines(dead_letters: Call, *arguments: str) -> list[Mapping[str, Any]]:
    called = await dead_letters(*arguments, "--json")
    assert called.exit_code == 0, called
    return [json.loads(line) for line in called.output.splitlines()]


async def bury(kafka: KafkaSettings, short: str, offset: int, error: Exception, *, role: str = "r") -> None:
    record: ConsumerRecord[bytes | None, bytes | None] = ConsumerRecord(
        topic=kafka.topic(short), partition=0, offset=offset, timestamp=0, timestamp_type=0, key=b"k",
        value=b"needle %d" % offset, checksum=None, serialized_key_size=1, serialized_value_size=1, headers=[],
    )  # fmt: skip
    async with DeadLetterOffice(kafka, role=role, worker_id=f"{role}-1") as office:
        await office.bury(record, error)


async def test_letters_are_chosen_by_all_filters(kafka: KafkaSettings, dead_letters: Call) -> None:
    await bury(kafka, "tasks", 0, ValueError("alpha"), role="rollout-worker")
    await bury(kafka, "tasks", 1, KeyError("beta"), role="rollout-worker")
    await bury(kafka, "tool-calls.default", 0, ValueError("gamma"), role="tool-worker")
    await bury(kafka, "tool-calls.default", 0, ValueError("gamma"), role="tool-worker")

    async def ids(*arguments: str) -> set[str]:
        return {each["id"] for each in await lines(dead_letters, "list", *arguments)}

    everything = {"tasks/0/0", "tasks/0/1", "tool-calls.default/0/0"}
    assert await ids() == await ids("--state", "all", "--since", "1h") == everything
    assert await ids("--topic", "tasks") == await ids("--role", "rollout-worker") == {"tasks/0/0", "tasks/0/1"}
    assert await ids("--topic", "tool-calls") == await ids("--worker", "tool-worker-1") == {"tool-calls.default/0/0"}
    assert await ids("--error-type", "ValueError", "--grep", "ALPHA") == {"tasks/0/0"}
    assert await ids("--grep", "needle 1") == {"tasks/0/1"}
    assert await ids("--until", "1h") == await ids("--since", "2999-01-01") == set()
    assert len(await ids("--limit", "1")) == 1
    [twice] = await lines(dead_letters, "list", "--topic", "tool-calls")
    assert twice["burials"] == 2
    table = (await dead_letters("list", "--limit", "1")).output
    assert "1 of 3 letters" in table


async def test_a_dropped_letter_is_out_of_the_way_and_not_away(kafka: KafkaSettings, dead_letters: Call) -> None:
    for offset in range(3):
        await bury(kafka, "tasks", offset, ValueError("x"))
    assert (await dead_letters("drop", "--topic", "tasks", "--dry-run")).output == "3 letters to drop\n"
    unasked = await dead_letters("drop", "--topic", "tasks")
    assert isinstance(unasked.error, SettingsError)
    assert "--yes" in str(unasked.error)
    assert (await dead_letters("drop", "tasks/0/1")).output == "1 letters dropped\n"
    assert [each["id"] for each in await lines(dead_letters, "list", "--state", "dropped")] == ["tasks/0/1"]
    assert "tasks/0/1 is dropped already" in (await dead_letters("drop", "tasks/0/1")).output
    await bury(kafka, "tasks", 1, ValueError("again, by another worker"))
    assert {each["id"] for each in await lines(dead_letters, "list")} == {"tasks/0/0", "tasks/0/2"}
    [shown] = await lines(dead_letters, "show", "tasks/0/1")
    assert (shown["state"], b64decode(shown["value"]), shown["burials"]) == ("dropped", b"needle 1", 2)
    assert "dropped at" in (await dead_letters("show", "tasks/0/1")).output
    assert (await dead_letters("drop", "--all", "--yes")).output == "2 letters dropped\n"
    assert await open_dead_letters(kafka) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "tasks/0/99"], "there is no letter 'tasks/0/99'"),
        (["show", "nonsense"], "names no record"),
        (["replay"], "which letters?"),
        (["drop"], "which letters?"),
        (["drop", "tasks/0/0", "--topic", "tasks"], "leave the filters out"),
        (["list", "--since", "yesterday"], "--since 'yesterday'"),
    ],
    ids=" ".join,
)
async def test_what_makes_no_sense_is_said(
    kafka: KafkaSettings, dead_letters: Call, arguments: Sequence[str], said: str
) -> None:
    called = await dead_letters(*arguments)
    assert called.exit_code == 1
    assert said in str(called.error)


async def test_an_observer_buries_nothing(kafka: KafkaSettings) -> None:
    producer = await start_producer(kafka)
    await producer.send_and_wait(kafka.topic("control"), BYTES, b"policy")
    await producer.send_and_wait(kafka.topic("trajectories"), BYTES, partition=0)
    await producer.stop()
    async with AsyncTrajectoryStream(kafka, trainer_id="o", is_observer=True, timeout_s=1.0) as stream:
        with suppress(TimeoutError):
            await anext(stream)
        assert stream.stats().undecodable == 1
    assert await open_dead_letters(kafka) == 0
