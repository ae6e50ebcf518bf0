"""Log lines: ids, formats, and floods that are held back."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest

from rollstream.transport.telemetry import FloodFilter, LogFormat, log_context, set_up_logging


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def set_up(log_format: LogFormat = "human") -> io.StringIO:
    stream = io.StringIO()
    set_up_logging(log_format=log_format, stream=stream)
    return stream


def test_people_read_time_level_place_message_and_ids() -> None:
    stream = set_up()
    with log_context(group_id="g1", member=3):
        logging.getLogger("rollstream.transport.clients").warning("lost %s", "it")

    line = stream.getvalue().strip()
    assert line.split(" ", 1)[1] == "WARNING transport.clients lost it  group_id=g1  member=3"


def test_machines_read_one_json_object_per_line() -> None:
    stream = set_up("json")
    try:
        raise ValueError("a\nb")
    except ValueError:
        with log_context(group_id="g1"):
            logging.getLogger("rollstream.x").exception("failed\n%s", "twice")

    [line] = stream.getvalue().splitlines()
    read = json.loads(line)
    assert (read["level"], read["logger"], read["message"]) == ("ERROR", "rollstream.x", "failed\ntwice")
    assert read["group_id"] == "g1"
    assert "ValueError: a\nb" in read["traceback"]
    assert read["at"].endswith("+00:00")


def test_ids_end_with_their_block_and_nest() -> None:
    stream = set_up("json")
    logger = logging.getLogger("rollstream.x")
    with log_context(a=1):
        with log_context(b=2):
            logger.info("inner")
        logger.info("outer")
    logger.info("none")

    inner, outer, none = map(json.loads, stream.getvalue().splitlines())
    assert (inner["a"], inner["b"]) == ("1", "2")
    assert outer["a"] == "1"
    assert "b" not in outer
    assert "a" not in none


async def test_tasks_side_by_side_keep_their_own_ids() -> None:
    stream = set_up("json")
    both_inside = asyncio.Barrier(2)

    async def work(name: str) -> None:
        with log_context(episode=name):
            await both_inside.wait()
            logging.getLogger("rollstream.x").info(name)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(work("one"))
        tasks.create_task(work("two"))

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert sorted((line["message"], line["episode"]) for line in lines) == [("one", "one"), ("two", "two")]


def test_setting_up_again_does_not_double_lines() -> None:
    set_up()
    stream = set_up()
    logging.getLogger("rollstream.x").info("once")

    assert stream.getvalue().count("once") == 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def record(name: str = "aiokafka.conn", message: str = "Unable connect to %s", *args: object) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "", 0, message, args, None)


def test_a_flood_passes_thinned_and_is_counted() -> None:
    clock = Clock()
    flood = FloodFilter(records=2, period_s=10, clock=clock)

    passed = [flood.filter(record("aiokafka.conn", "Unable connect to %s", node)) for node in range(100)]
    clock.now = 10.0
    after = record("aiokafka.conn", "Unable connect to %s", 7)

    assert passed == [True, True] + [False] * 98
    assert flood.filter(after)
    assert after.getMessage() == "Unable connect to 7 (98 more like it were held back)"


def test_a_new_period_begins_with_a_clean_count() -> None:
    clock = Clock()
    flood = FloodFilter(records=1, period_s=10, clock=clock)
    flood.filter(record())
    clock.now = 10.0
    again = record("aiokafka.conn", "Unable connect to %s", 1)

    assert flood.filter(again)
    assert again.getMessage() == "Unable connect to 1"


def test_of_a_broker_that_is_away_each_waiting_send_does_not_tell_anew() -> None:
    flood = FloodFilter(records=2, clock=Clock())
    sends = [record("rollstream.transport.publisher", "send to %s failed", "tasks") for _ in range(50)]

    assert [flood.filter(send) for send in sends] == [True, True] + [False] * 48


def test_the_level_of_the_kafka_client_is_its_own() -> None:
    stream = io.StringIO()
    set_up_logging(level=logging.WARNING, client_level=logging.CRITICAL, stream=stream)
    logging.getLogger("aiokafka.conn").error("from the client")
    logging.getLogger("rollstream.x").warning("ours")
    logging.getLogger("aiokafka").setLevel(logging.NOTSET)

    assert "from the client" not in stream.getvalue()
    assert "ours" in stream.getvalue()


def test_other_messages_and_our_own_are_never_held_back() -> None:
    flood = FloodFilter(records=1, clock=Clock())

    assert all(flood.filter(record(message=f"message {number}")) for number in range(50))
    assert all(flood.filter(record(name="rollstream.x")) for _ in range(50))
    assert all(flood.filter(record(name="aiokafkaesque")) for _ in range(50))
