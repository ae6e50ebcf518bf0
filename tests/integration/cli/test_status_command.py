# aiokafka is annotated in part only.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import asyncio
import json
import sys
import time

import pytest

from rollstream.cli.status import gather_report
from rollstream.schemas.control import PolicyVersion, ProducerProgress, WorkerStatus
from rollstream.schemas.tasks import ChatMessage, RolloutTask
from rollstream.transport.clients import start_consumer
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker


def task(member: int) -> RolloutTask:
    return RolloutTask(
        run_id="r",
        group_id="0" * 32,
        group_index=0,
        group_size=8,
        member_index=member,
        trajectory_id=f"{member:032x}",
        messages=[ChatMessage(role="user", content="?")],
    )


async def rollstream(kafka: KafkaSettings, *arguments: str) -> tuple[int, str, str]:
    """Run the command in a process of its own: exit code, standard output, standard error."""
    where = ("--set", f"kafka.bootstrap={kafka.bootstrap}", "--set", f"kafka.prefix={kafka.prefix}")
    partitions = ("--set", f"kafka.partitions={json.dumps(dict(kafka.partitions))}")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rollstream.cli.main", *where, *partitions, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_status_shows_workers_versions_and_lag(kafka: KafkaSettings) -> None:
    now = time.time()
    policy = PolicyVersion(version=4, lineage=0, uri="p/4", manifest_sha256="0" * 64, published_at=now)
    living = WorkerStatus(
        worker_id="a", role="rollout-worker", state="running", running=3, policy_version=2, lineage=0, updated_at=now
    )
    dead = WorkerStatus(worker_id="b", role="tool-worker", state="running", running=5, updated_at=now - 60)
    producer = ProducerProgress(run_id="r", groups_emitted=1, group_size=8, updated_at=now)
    async with Publisher(kafka, profile="durable") as publisher:
        for message in (policy, living, dead, producer):
            await publisher.publish(message, key=control_key(message))
        for member in range(8):
            await publisher.publish(task(member), key="g", partition=0)
    await commit(kafka, offset=3)

    code, out, _ = await rollstream(kafka, "status", "--json")
    assert code == 0
    status = json.loads(out)
    assert (status["episodes_running"], status["tool_calls_running"], status["policy_version"]) == (3, 0, 4)
    assert [(w["worker_id"], w["state"], w["versions_behind"]) for w in status["workers"]] == [
        ("a", "running", 2),
        ("b", "silent", None),
    ]
    assert status["lags"] == [{"group": kafka.group("rollout-workers"), "topic": kafka.topic("tasks"), "lag": 5}]
    assert status["producers"][0]["groups_emitted"] == 1

    code, out, _ = await rollstream(kafka, "status")
    assert code == 0
    assert "silent" in out


async def commit(kafka: KafkaSettings, offset: int) -> None:
    from aiokafka import TopicPartition

    consumer = await start_consumer(kafka, group_id=kafka.group("rollout-workers"))
    try:
        partition = TopicPartition(kafka.topic("tasks"), 0)
        consumer.assign([partition])
        await consumer.commit({partition: offset})
    finally:
        await consumer.stop()


async def test_a_fresh_set_of_topics_has_an_empty_report(kafka: KafkaSettings) -> None:
    async with ControlFollower(kafka) as control:
        report = await gather_report(kafka, control)
    assert (report.workers, report.policy_version, report.lags) == ((), None, ())


async def test_a_broker_that_is_not_there_is_one_clear_message() -> None:
    nobody = KafkaSettings(bootstrap="127.0.0.1:1", start_timeout_s=1)
    code, _, err = await rollstream(nobody, "--set", "kafka.start_timeout_s=1", "status")
    assert code == 1
    assert "127.0.0.1:1" in err
    assert "Traceback" not in err


async def test_doctor_finds_missing_topics_and_says_what_to_do(kafka: KafkaSettings) -> None:
    code, out, _ = await rollstream(kafka, "--set", 'kafka.toolsets=["default", "extra"]', "doctor", "--json")
    found = {finding["check"]: finding for finding in json.loads(out)["findings"]}
    assert code == 1
    assert found["broker"]["outcome"] == "ok"
    assert (found["topics"]["outcome"], found["topics"]["remedy"]) == ("failed", "run `rollstream topics apply`")
    assert "tool-calls.extra" in found["topics"]["detail"]


async def test_doctor_is_content_with_declared_topics_and_a_broken_model_is_named(kafka: KafkaSettings) -> None:
    code, out, _ = await rollstream(kafka, "doctor", "--model", "/nonexistent/model", "--json")
    found = {finding["check"]: finding for finding in json.loads(out)["findings"]}
    assert code == 1
    assert found["topics"]["outcome"] == "ok"
    assert "/nonexistent/model" in found["model"]["detail"]
    assert found["tokenizer"]["outcome"] == "failed"
