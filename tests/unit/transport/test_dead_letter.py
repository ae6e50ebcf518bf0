"""What a dead letter tells of the record it holds."""

from __future__ import annotations

import pytest
from aiokafka import ConsumerRecord

from rollstream.schemas.codec import decode, encode
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import InvalidMessageError
from rollstream.transport.dead_letters import MAX_ERROR_CHARS, MAX_STACK_CHARS, dead_letter
from rollstream.transport.records import Record, record_place


def record(
    value: bytes | None = b"\xff\x00", key: bytes | None = b"k", headers: list[tuple[str, bytes]] | None = None
) -> Record:
    return ConsumerRecord(
        topic="run.tasks",
        partition=3,
        offset=17,
        timestamp=0,
        timestamp_type=0,
        key=key,
        value=value,
        checksum=None,
        serialized_key_size=-1,
        serialized_value_size=-1,
        headers=headers or [],
    )


def letter(of: Record, error: BaseException, attempts: int = 1) -> DeadLetter:
    return dead_letter(of, error, role="rollout-worker", worker_id="w1", attempts=attempts, failed_at=5.0)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_it_holds_the_whole_record_its_place_and_the_cause() -> None:
    found = letter(record(headers=[("schema", b"RolloutTask")]), raised(InvalidMessageError("bad field")), attempts=2)

    assert (found.origin_topic, found.origin_partition, found.origin_offset) == ("run.tasks", 3, 17)
    assert (found.key, found.value, found.headers) == (b"k", b"\xff\x00", [("schema", b"RolloutTask")])
    assert (found.role, found.worker_id, found.attempts, found.failed_at) == ("rollout-worker", "w1", 2, 5.0)
    assert (found.error_type, found.error) == ("InvalidMessageError", "bad field")
    assert "test_dead_letter.py" in found.stack


@pytest.mark.parametrize(
    ("value", "key", "headers"),
    [
        (None, None, []),
        (b"", b"", [("", b"")]),
        (bytes(range(256)) * 300, b"\xff" * 300, [("a", b"\x00\xff"), ("a", b"again")]),
        (b"x", b"k", [("null", None)]),
    ],
)
def test_whatever_bytes_a_record_holds_survive_the_wire(
    value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes]]
) -> None:
    written = letter(record(value, key, headers), ValueError("x"))
    encoded = encode(written)

    read = decode(encoded.value, encoded.headers, DeadLetter)
    assert read == written
    assert (read.value, read.key) == (value, key)
    assert read.headers == [(name, data or b"") for name, data in headers]


def test_long_errors_keep_their_beginning_and_long_stacks_their_end() -> None:
    found = letter(record(), raised(ValueError("first" + "x" * 20_000 + "last")))

    assert len(found.error) == MAX_ERROR_CHARS
    assert found.error.startswith("first")
    assert len(found.stack) == MAX_STACK_CHARS
    assert found.stack.rstrip().endswith("last")


def test_an_error_with_text_that_is_no_unicode_can_be_written() -> None:
    found = letter(record(), raised(ValueError("file \udcff")))

    assert "\\udcff" in found.error
    assert encode(found).value


def test_the_place_of_a_record_reads_topic_partition_offset() -> None:
    assert record_place(record()) == "run.tasks/3/17"
