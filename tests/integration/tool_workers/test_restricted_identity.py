"""A tool worker whose user may read its calls and write results, and what that user cannot do at a real broker.

What is refused is asked for in single requests, past everything that a well-behaved client looks at first; the same
request of the super user shows that it is the right alone which is missing.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false, reportArgumentType=false
# (aiokafka is annotated in part only, and single requests have no public way)

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.protocol.admin import (
    AlterConfigsRequest,
    CreateAclsRequest,
    CreatePartitionsRequest,
    CreateTopicsRequest,
    DeleteAclsRequest,
    DeleteGroupsRequest,
    DeleteRecordsRequest,
    DeleteTopicsRequest,
)
from aiokafka.protocol.api import Request
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import JoinGroupRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from typer.testing import CliRunner

from rollstream.cli.topics import topics_app
from rollstream.producers.service import produce
from rollstream.producers.settings import ProducerSettings
from rollstream.rollout_workers.engine_settings import ScriptedSettings
from rollstream.rollout_workers.service import run_rollout_worker
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas.errors import SettingsError, TopicDeniedError
from rollstream.schemas.tools import SessionEnd, ToolCall
from rollstream.tool_workers.service import run_tool_worker
from rollstream.tool_workers.settings import ToolWorkerSettings
from rollstream.trainers import AsyncTrajectoryStream
from rollstream.transport import metrics
from rollstream.transport.access_admin import grant, list_grants
from rollstream.transport.access_rules import AccessRule, access_rules
from rollstream.transport.clients import admin_client, start_producer, stop_producer
from rollstream.transport.local_broker import BrokerSettings, LocalBroker
from rollstream.transport.local_broker.users import BrokerUsers
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.tool_client import ToolClient
from rollstream.transport.topic_admin import apply_topics, consumer_lag
from rollstream.transport.topic_watch import topic_ends

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

PARTITIONS = {
    "tasks": 2,
    "tool-calls.default": 1,
    "tool-calls.other": 1,
    "tool-results": 2,
    "trajectories": 1,
    "dead-letters": 1,
}
PREFIX = "rights."
DENIED = {29, 30, 31}
"""The broker's codes for: not this topic, not this group, not this cluster."""
GONE_OR_WAITING = {69, 79}
"""No such group; first take this member id. Both are answers to somebody who has the right."""
TIMEOUT_MS = 10_000
OTHER_ROLES = ("producer", "rollout-worker", "trainer")
GROUPS, GROUP_SIZE = 4, 2

Ask = Callable[[KafkaSettings], Request[Any]]


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """The super user of a broker with logins and rights, its topics there, and the rights of `tools` given."""
    users = BrokerUsers(
        "admin", {name: uuid.uuid4().hex for name in ("admin", "tools", "onlooker", "newcomer", *OTHER_ROLES)}
    )
    settings = BrokerSettings(data_dir=tmp_path_factory.mktemp("secured") / "broker", source="jars")
    broker = LocalBroker(settings, users=users)
    broker.start()
    try:
        kafka = KafkaSettings(
            bootstrap=broker.bootstrap,
            prefix=PREFIX,
            toolsets=("default", "other"),
            partitions=PARTITIONS,
            security_protocol="SASL_PLAINTEXT",
            sasl_username="admin",
            sasl_password=users.passwords["admin"],
        )
        asyncio.run(apply_topics(kafka))
        asyncio.run(consumer_lag(kafka, kafka.group("rollout-workers")))  # waits for the coordinator
        PASSWORDS.update(users.passwords)
        granted = command(kafka, "grant", "--principal", "User:tools", "--role", "tool-worker")
        assert granted.count("granted to User:tools") == 5
        yield kafka
    finally:
        broker.kill9()


PASSWORDS: dict[str, str] = {}


def as_user(kafka: KafkaSettings, name: str) -> KafkaSettings:
    return KafkaSettings.model_validate(
        kafka.model_dump() | {"sasl_username": name, "sasl_password": PASSWORDS[name]},
    )


def command(kafka: KafkaSettings, *arguments: str) -> str:
    """The output of ``rollstream topics …``, its settings from the environment."""
    environment = {
        "BOOTSTRAP": kafka.bootstrap,
        "PREFIX": kafka.prefix,
        "TOOLSETS": json.dumps(kafka.toolsets),
        "PARTITIONS": json.dumps(PARTITIONS),
        "SECURITY_PROTOCOL": kafka.security_protocol,
        "SASL_USERNAME": kafka.sasl_username,
        "SASL_PASSWORD": PASSWORDS[kafka.sasl_username or ""],
    }
    done = CliRunner().invoke(
        topics_app,
        list(arguments),
        env={f"ROLLSTREAM_KAFKA__{name}": value for name, value in environment.items()} | {"COLUMNS": "200"},
    )
    if done.exception is not None:
        raise done.exception
    return done.output


async def codes(kafka: KafkaSettings, request: Request[Any]) -> set[int]:
    """Every error code in the broker's answer to one request."""
    async with admin_client(kafka) as client:
        answer: Any = await client._send_request(request)
    if isinstance(request, FetchRequest):  # null arrays in it, which the client cannot show as an object
        return {answer.error_code, *(partition[1] for _, partitions in answer.topics for partition in partitions)}
    return set(_error_codes(answer.to_object()))


def _error_codes(answer: Any) -> Iterator[int]:
    if isinstance(answer, dict):
        for name, value in answer.items():
            if name == "error_code":
                yield value
            else:
                yield from _error_codes(value)
    elif isinstance(answer, list | tuple):
        for each in answer:
            yield from _error_codes(each)


def batch() -> bytes:
    """One record as it stands in a request."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1024)
    builder.append(0, int(time.time() * 1000), b"key", b"forged", [])
    return bytes(builder.build())


def reading(short: str) -> Ask:
    return lambda kafka: FetchRequest(100, 0, 1024 * 1024, 0, [(kafka.topic(short), [(0, 0, 1024 * 1024)])])


def writing(short: str) -> Ask:
    return lambda kafka: ProduceRequest(None, -1, TIMEOUT_MS, [(kafka.topic(short), [(0, batch())])])


def committed_of(group: str) -> Ask:
    return lambda kafka: OffsetFetchRequest(kafka.group(group), [(kafka.topic("tool-calls.default"), [0])])


def committing_as(group: str, short: str = "tool-calls.default") -> Ask:
    return lambda kafka: OffsetCommitRequest(kafka.group(group), -1, "", -1, [(kafka.topic(short), [(0, 0, "")])])


def joining(group: str) -> Ask:
    return lambda kafka: JoinGroupRequest(
        kafka.group(group),
        6000,
        6000,
        "",
        None,
        "consumer",
        [("range", b"\0\0\0\0\0\0\0\0\0\0")],
    )


def rule_of(principal: str, short: str) -> Callable[[KafkaSettings], tuple[Any, ...]]:
    return lambda kafka: (2, kafka.topic(short), 3, principal, "*", 4, 3)


ALLOWED: dict[str, Ask] = {
    "read its calls": reading("tool-calls.default"),
    "write results": writing("tool-results"),
    "read what its group has committed": committed_of("tool-workers.default"),
    "commit as its group": committing_as("tool-workers.default"),
    "join its group": joining("tool-workers.default"),
}
FORBIDDEN: dict[str, Ask] = {
    **{
        f"read {short}": reading(short)
        for short in (
            "tasks",
            "trajectories",
            "control",
            "journal",
            "tool-results",
            "dead-letters",
            "tool-calls.other",
        )
    },
    **{
        f"write {short}": writing(short)
        for short in (
            "tool-calls.default",
            "tool-calls.other",
            "tasks",
            "control",
            "trajectories",
            "journal",
            "dead-letters",
        )
    },
    "read the commits of rollout workers": committed_of("rollout-workers"),
    "commit as rollout workers": committing_as("rollout-workers", "tasks"),
    "join the rollout workers": joining("rollout-workers"),
    "join a group of its own": joining("mine"),
    "join the tool workers of another toolset": joining("tool-workers.other"),
    "delete its group": lambda kafka: DeleteGroupsRequest([kafka.group("tool-workers.default")]),
    "create a topic": lambda kafka: CreateTopicsRequest(
        [(f"{kafka.prefix}mine", 1, 1, [], [])],
        TIMEOUT_MS,
        validate_only=True,
    ),
    "add partitions to results": lambda kafka: CreatePartitionsRequest(
        [(kafka.topic("tool-results"), (3, None))],
        TIMEOUT_MS,
        validate_only=True,
    ),
    "change the retention of results": lambda kafka: AlterConfigsRequest(
        [(2, kafka.topic("tool-results"), [("retention.ms", "1")])], validate_only=True
    ),
    "delete results": lambda kafka: DeleteRecordsRequest([(kafka.topic("tool-results"), [(0, 0)])], TIMEOUT_MS),
    "delete calls": lambda kafka: DeleteRecordsRequest([(kafka.topic("tool-calls.default"), [(0, 0)])], TIMEOUT_MS),
    "grant": lambda kafka: CreateAclsRequest(*rule_of("User:nobody", "control")(kafka)),
    "revoke": lambda kafka: DeleteAclsRequest(*rule_of("User:nobody", "control")(kafka)),
    "delete a topic": lambda kafka: DeleteTopicsRequest([f"{kafka.prefix}spare"], TIMEOUT_MS),
}


@pytest.mark.parametrize("what", ALLOWED)
async def test_the_user_of_a_tool_worker_may(admin: KafkaSettings, what: str) -> None:
    assert await codes(as_user(admin, "tools"), ALLOWED[what](admin)) <= {0, *GONE_OR_WAITING}


@pytest.mark.parametrize("what", FORBIDDEN)
async def test_the_user_of_a_tool_worker_may_not(admin: KafkaSettings, what: str) -> None:
    if what == "delete a topic":
        async with admin_client(admin) as client:
            await client._send_request(CreateTopicsRequest([(f"{PREFIX}spare", 1, 1, [], [])], TIMEOUT_MS, False))
    found = await codes(as_user(admin, "tools"), FORBIDDEN[what](admin))
    assert found & DENIED
    assert not found - DENIED - {0}
    assert await codes(admin, FORBIDDEN[what](admin)) <= {0, *GONE_OR_WAITING}


async def test_its_topics_are_not_deleted_by_the_user_who_uses_them(admin: KafkaSettings) -> None:
    names = [admin.topic(short) for short in ("tool-calls.default", "tool-results", "control")]
    assert await codes(as_user(admin, "tools"), DeleteTopicsRequest(names, TIMEOUT_MS)) == {29}
    assert None not in (await topic_ends(admin, names)).values()


@pytest.mark.parametrize("user", ["tools", "onlooker"])
async def test_a_worker_with_these_rights_answers_and_tells_in_its_log_what_it_may_not_publish(
    admin: KafkaSettings, caplog: pytest.LogCaptureFixture, user: str
) -> None:
    """An onlooker may look at what it may not write: it learns that from the refusal of what it sends."""
    caplog.set_level(logging.INFO)
    silent = [admin.topic(short) for short in ("control", "dead-letters")]
    if user == "onlooker":
        looking = [AccessRule("topic", name, "literal", "describe") for name in silent]
        await grant(admin, "User:onlooker", [*access_rules("tool-worker", admin, toolset="default"), *looking])
    before, counted = await topic_ends(admin, silent), logged_count(admin, "UnsupportedSchemaError")
    stop = asyncio.Event()
    settings = ToolWorkerSettings(tools=("calculator",), worker_id="restricted")
    async with asyncio.TaskGroup() as group:
        group.create_task(run_tool_worker(settings, as_user(admin, user), stop))
        async with ToolClient(admin, worker_id="caller") as client:
            assert (await client.call(calculation("6 * 7"), "default")).content == "42"
            offsets = [await send_rubbish(admin, value) for value in (b"\xff rubbish \x00", b"r" * 300_000)]
            assert (await client.call(calculation("1 + 1"), "default")).content == "2"
            await until_logged(caplog, offsets)
        stop.set()

    letters = {letter["origin_offset"]: letter for letter in logged_letters(caplog)}
    assert sorted(offset for offset in letters if offset in offsets) == offsets
    first, second = (letters[offset] for offset in offsets)
    assert base64.b64decode(first["value"]) == b"\xff rubbish \x00"
    assert base64.b64decode(second["value"]) == b"r" * 300_000
    assert base64.b64decode(first["key"]) == b"k"
    assert [[name, base64.b64decode(data)] for name, data in first["headers"]] == [["schema", b"ToolCall"]]
    assert (first["origin_topic"], first["role"], first["bytes_missing"]) == (
        admin.topic("tool-calls.default"),
        "tool-worker",
        0,
    )
    assert first["error_type"] == second["error_type"] == "UnsupportedSchemaError"
    assert logged_count(admin, "UnsupportedSchemaError") == counted + len(letters)
    assert await topic_ends(admin, silent) == before
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if "status of restricted is told in its log" in text]) == 1
    assert any("status of restricted: " in text and '"state":"stopped"' in text for text in said)
    assert len([text for text in said if "go to this log, not to" in text]) == 1
    assert len([text for text in said if text.startswith("not watched")]) == (1 if user == "tools" else 0)


async def test_a_worker_that_may_not_write_results_does_not_start(admin: KafkaSettings) -> None:
    settings = ToolWorkerSettings(tools=("calculator",), worker_id="stranger")
    with pytest.raises(TopicDeniedError, match="grant the missing permission"):
        await run_tool_worker(settings, as_user(admin, "newcomer"), asyncio.Event())
    with pytest.raises(TopicDeniedError):
        async with Publisher(as_user(admin, "tools")) as publisher:
            await publisher.publish(SessionEnd(session_id="s"), key="s", topic=admin.topic("tool-calls.default"))


async def test_every_other_role_works_with_its_rights(admin: KafkaSettings, tmp_path: Path) -> None:
    """A run from its prompts to its batches, a rubbish trajectory in between, and a tool call of the rollout worker."""
    kafka = KafkaSettings.model_validate(admin.model_dump() | {"prefix": "roles."})
    await apply_topics(kafka)
    for role in (*OTHER_ROLES, "tool-worker"):
        name = "tools" if role == "tool-worker" else role
        await asyncio.to_thread(command, kafka, "grant", "--principal", f"User:{name}", "--role", role)
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"question": f"What is {number} + 1?", "answer": str(number + 1)} for number in range(GROUPS)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not await codes(kafka, writing("trajectories")(kafka)) - {0}

    stop = asyncio.Event()
    rollout = RolloutWorkerSettings(engine=ScriptedSettings(), worker_id="rollout", drain_s=2.0)
    tools = ToolWorkerSettings(tools=("calculator",), worker_id="tools")
    production = ProducerSettings(
        source=str(prompts), run_id="run", group_size=GROUP_SIZE, is_paced=False, reward="numeric"
    )
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(run_rollout_worker(rollout, as_user(kafka, "rollout-worker"), stop))
        group.create_task(run_tool_worker(tools, as_user(kafka, "tools"), stop))
        for _ in range(2):  # the second time it looks at what it has sent
            await produce(production, as_user(kafka, "producer"), asyncio.Event())
        async with AsyncTrajectoryStream(as_user(kafka, "trainer"), groups_per_batch=2, timeout_s=50.0) as stream:
            batches = [batch async for batch in stream]
            print("STATS", stream.stats())
        async with ToolClient(as_user(kafka, "rollout-worker"), worker_id="caller") as client:
            assert (await client.call(calculation("2 + 2"), "default")).content == "4"
        stop.set()
    assert sorted(each.group_index for batch in batches for each in batch.groups) == list(range(GROUPS))
    ends = await topic_ends(kafka, [kafka.topic("dead-letters")])
    assert ends == {kafka.topic("dead-letters"): [1]}


def test_rights_are_granted_once_shown_and_taken_away(admin: KafkaSettings) -> None:
    who = ("--principal", "User:newcomer")
    for role in OTHER_ROLES:
        assert "would be granted to User:newcomer: write topic rights.control" in command(
            admin, "grant", *who, "--role", role, "--dry-run"
        )
    assert json.loads(command(admin, "grants", *who, "--json")) == []
    for role in OTHER_ROLES:
        assert "granted to User:newcomer" in command(admin, "grant", *who, "--role", role)
        assert "nothing to grant" in command(admin, "grant", *who, "--role", role)
    assert "beyond those of a producer" in command(admin, "grant", *who, "--role", "producer")
    shown = command(admin, "grants", *who)
    assert "rights.trainer.*" in shown
    everybody = asyncio.run(list_grants(admin))
    newcomers = [each for each in everybody if each.principal == "User:newcomer"]
    assert 0 < len(newcomers) < len(everybody)
    assert len(json.loads(command(admin, "grants", *who, "--json"))) == len(newcomers)
    for role in OTHER_ROLES:
        command(admin, "revoke", *who, "--role", role)
        assert "nothing to revoke" in command(admin, "revoke", *who, "--role", role)
    assert "nothing is granted" in command(admin, "grants", *who)
    with pytest.raises(SettingsError, match="does not let 'tools' show rights"):
        command(as_user(admin, "tools"), "grants")


def calculation(expression: str) -> ToolCall:
    return ToolCall(
        call_id=uuid.uuid4().hex,
        session_id=None,
        turn=0,
        token=None,
        deadline=time.time() + 30,
        timeout_s=10.0,
        reply_topic="",
        reply_partition=0,
        tool="calculator",
        arguments=json.dumps({"expression": expression}),
    )


async def send_rubbish(kafka: KafkaSettings, value: bytes) -> int:
    """Something that is no call; returns its offset."""
    producer = await start_producer(kafka)
    try:
        place = TopicPartition(kafka.topic("tool-calls.default"), 0)
        sent = await producer.send_and_wait(
            place.topic, value, b"k", place.partition, headers=[("schema", b"ToolCall")]
        )
    finally:
        await stop_producer(producer)
    return sent.offset


def logged_count(kafka: KafkaSettings, error: str) -> float:
    return metrics.LOGGED_LETTERS.labels(kafka.topic("tool-calls.default"), error)._value.get()


def logged_letters(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    lines = [record.getMessage() for record in caplog.records if record.name == "rollstream.dead_letters"]
    return [json.loads(line.partition(": ")[2]) for line in lines if line.startswith("dead letter of ")]


async def until_logged(caplog: pytest.LogCaptureFixture, offsets: list[int]) -> None:
    """A log has no events; ten seconds at most."""
    async with asyncio.timeout(10):
        while not {letter["origin_offset"] for letter in logged_letters(caplog)}.issuperset(offsets):  # noqa: ASYNC110 -- see above
            await asyncio.sleep(0.02)
