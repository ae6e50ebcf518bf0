"""What a dead letter tells of the record it holds."""

from __future__ import annotations

import pytest
from aiokafka import ConsumerRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from rollstream.schemas.codec import decode, encode
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import InvalidMessageError
from rollstream.transport.dead_letters import (
    HEADER_FRAME_BYTES,
    MAX_ERROR_CHARS,
    MAX_KEY_BYTES,
    MAX_STACK_CHARS,
    SMALLEST_LIMIT_BYTES,
    STORY_BYTES,
    Cause,
    cut,
    dead_letter,
)
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


def letter(of: Record, error: BaseException | Cause, attempts: int = 1) -> DeadLetter:
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


def test_a_cause_that_comes_from_elsewhere_is_taken_as_it_is() -> None:
    found = letter(record(), Cause("EngineError", "the engine broke", "line 1\nline 2"))

    assert (found.error_type, found.error, found.stack) == ("EngineError", "the engine broke", "line 1\nline 2")


records_of_any_shape = st.builds(
    record,
    value=st.none() | st.integers(0, 3_000_000).map(bytes),
    key=st.none() | st.integers(0, 1_000_000).map(bytes),
    headers=st.lists(st.tuples(st.text(max_size=5), st.integers(0, 600_000).map(bytes)), max_size=4),
)


def size_bytes(of: DeadLetter) -> int:
    return len(of.key or b"") + len(of.value or b"") + sum(len(n.encode()) + len(d) for n, d in of.headers)


@given(records_of_any_shape, st.integers(SMALLEST_LIMIT_BYTES, 4_000_000))
@settings(max_examples=60, deadline=None)
def test_a_letter_is_cut_only_as_far_as_it_must_and_says_how_far(of: Record, limit_bytes: int) -> None:
    whole = letter(of, raised(ValueError("x" * 20_000)))
    shorter = cut(whole, limit_bytes)

    on_the_wire = len(encode(shorter, compress_above_bytes=2**62).value) + len(shorter.key or b"")
    assert on_the_wire <= limit_bytes
    assert shorter.bytes_missing == size_bytes(whole) - size_bytes(shorter)
    assert (whole.value or b"").startswith(shorter.value or b"")
    assert (whole.key or b"").startswith(shorter.key or b"")
    assert whole.headers[: len(shorter.headers)] == shorter.headers
    assert (shorter.value is None, shorter.key is None) == (whole.value is None, whole.key is None)
    if size_bytes(whole) + len(whole.key or b"") + 4 * HEADER_FRAME_BYTES <= limit_bytes - STORY_BYTES:
        assert shorter == whole


def test_what_is_cut_first_is_the_end_of_the_value() -> None:
    of = record(value=bytes(900_000), key=b"k" * 1000, headers=[("schema", b"RolloutTask"), ("x", bytes(1000))])
    shorter = cut(letter(of, ValueError("x")), SMALLEST_LIMIT_BYTES)

    assert (shorter.key, shorter.headers) == (of.key, [("schema", b"RolloutTask"), ("x", bytes(1000))])
    assert shorter.value
    assert shorter.bytes_missing == 900_000 - len(shorter.value)


def test_a_key_that_fills_the_letter_is_cut_too() -> None:
    shorter = cut(letter(record(key=b"k" * 10_000_000), ValueError("x")), SMALLEST_LIMIT_BYTES)

    assert shorter.key == b"k" * MAX_KEY_BYTES
    assert shorter.value == b"\xff\x00"
