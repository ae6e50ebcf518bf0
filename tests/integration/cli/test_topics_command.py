"""`rollstream topics apply | check | list` against a real broker."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from rollstream.cli.topics import retention, size, topics_app
from rollstream.transport.clients import admin_client
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import list_topics

pytestmark = pytest.mark.broker

PARTITIONS = {"tasks": 2, "tool-calls.default": 1, "tool-results": 2, "trajectories": 2, "dead-letters": 1}


async def _delete(kafka: KafkaSettings) -> None:
    names = [topic.name for topic in await list_topics(kafka)]
    async with admin_client(kafka) as admin:
        await admin.delete_topics(names)


@pytest.fixture
def prefix(broker: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A prefix without topics, set by the environment like the rest."""
    name = f"cli-{uuid.uuid4().hex[:12]}."
    monkeypatch.setenv("ROLLSTREAM_KAFKA__BOOTSTRAP", broker)
    monkeypatch.setenv("ROLLSTREAM_KAFKA__PARTITIONS", json.dumps(PARTITIONS))
    monkeypatch.setenv("COLUMNS", "200")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield name
    root.handlers[:] = handlers
    root.setLevel(level)
    asyncio.run(_delete(KafkaSettings(bootstrap=broker, prefix=name)))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(topics_app, list(arguments))


def test_check_apply_check_list(prefix: str) -> None:
    missing = run("check", "--prefix", prefix)
    assert missing.exit_code == 1
    assert f"{prefix}tasks" in missing.output
    assert "does not exist" in missing.output

    applied = run("apply", "--prefix", prefix)
    assert applied.exit_code == 0, applied.output
    assert f"{prefix}tasks: created with 2 partitions" in applied.output
    assert "nothing to change" in run("apply", "--prefix", prefix).output

    checked = run("check", "--prefix", prefix)
    assert checked.exit_code == 0
    assert f"all 8 topics under '{prefix}' are as declared" in checked.output

    listed = run("list", "--prefix", prefix)
    assert f"{prefix}control" in listed.output
    assert "newest per key" in listed.output


def test_what_apply_cannot_mend_stays_visible(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("apply", "--prefix", prefix)
    monkeypatch.setenv("ROLLSTREAM_KAFKA__PARTITIONS", json.dumps(PARTITIONS | {"tasks": 3, "tool-results": 1}))

    applied = run("apply", "--prefix", prefix)
    assert applied.exit_code == 1
    assert "apply --grow" in applied.output
    grown = run("apply", "--grow", "--prefix", prefix)
    assert grown.exit_code == 1
    assert f"{prefix}tasks: grown from 2 to 3 partitions" in grown.output

    [left] = json.loads(run("check", "--json", "--prefix", prefix).stdout)
    assert (left["topic"], left["aspect"], left["declared"], left["actual"]) == (
        f"{prefix}tool-results",
        "partitions",
        "1",
        "2",
    )


def test_list_tells_machines_too(prefix: str) -> None:
    assert "no topics" in run("list", "--prefix", prefix).output
    run("apply", "--prefix", prefix)

    listed = {topic["name"]: topic for topic in json.loads(run("list", "--json", "--prefix", prefix).stdout)}
    assert listed[f"{prefix}tool-results"]["partitions"] == 2
    assert listed[f"{prefix}control"]["config"]["cleanup.policy"] == "compact"


def test_retention_and_sizes_read_as_people_say_them() -> None:
    kept = {"cleanup.policy": "delete", "retention.ms": "604800000", "retention.bytes": "8589934592"}

    assert retention(kept) == "7 d, 8 GiB per partition"
    assert retention(kept | {"retention.bytes": "-1", "retention.ms": "90000"}) == "1.5 min"
    assert retention(kept | {"retention.bytes": "-1", "retention.ms": "-1"}) == "for ever"
    assert retention({"cleanup.policy": "compact"}) == "newest per key"
    assert [size(n) for n in (12, 2048, 1_572_864)] == ["12 B", "2 KiB", "1.5 MiB"]
