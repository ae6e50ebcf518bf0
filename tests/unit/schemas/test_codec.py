from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rollstream.schemas import codec
from rollstream.schemas.codec import decode, encode, read_body
from rollstream.schemas.control import Pause, PolicyVersion
from rollstream.schemas.errors import InvalidMessageError, UnsupportedSchemaError
from rollstream.schemas.messages import SCHEMA_VERSION, Message
from rollstream.schemas.registry import MESSAGES
from rollstream.schemas.tasks import ChatMessage, RolloutTask
from rollstream.schemas.trajectories import Sample, Trajectory, Turn, VersionSpan

HEADERS = [("schema", b"Pause"), ("schema_version", b"1")]


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Turns of sampled tokens with observations between them, each turn drawn by one or two policies."""
    mask: list[int] = []
    spans: list[VersionSpan] = []
    turns: list[Turn] = []
    for index in range(draw(st.integers(1, 4))):
        sampled, observed = draw(st.integers(1, 20)), draw(st.integers(0, 10))
        start, end = len(mask), len(mask) + sampled
        cut = draw(st.integers(start, end - 1))
        spans += [VersionSpan(a, b, 3 + index) for a, b in ((start, cut), (cut, end)) if a < b]
        turns.append(Turn(start=start, end=end, finish_reason=draw(st.sampled_from(["stop", "length", "abort"]))))
        mask += [1] * sampled + [0] * observed
    logprobs = draw(st.lists(st.floats(-(2.0**100), 0, width=32), min_size=len(mask), max_size=len(mask)))
    ids = st.lists(st.integers(0, 2**31 - 1), min_size=len(mask), max_size=len(mask))
    return Sample(
        prompt_ids=np.array(draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)), dtype=np.int32),
        response_ids=np.array(draw(ids), dtype=np.int32),
        response_mask=np.array(mask, dtype=np.uint8),
        response_logprobs=np.array(logprobs, dtype=np.float32) * np.array(mask, dtype=np.float32),
        version_spans=spans,
        turns=turns,
    )


def trajectory(*with_samples: Sample, **changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "run_id": "run",
        "trajectory_id": "t" * 32,
        "group_id": "g" * 32,
        "group_index": 0,
        "group_size": 2,
        "member_index": 1,
        "status": "completed",
        "stop_reason": "stop",
        "samples": list(with_samples),
        "reward": 1.0,
        "policy_version_max": 10,
    }
    return Trajectory(**{**fields, **changes})


def assert_same_sample(actual: Sample, expected: Sample) -> None:
    for name in ("prompt_ids", "response_ids", "response_mask", "response_logprobs"):
        ours, theirs = getattr(actual, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        assert_array_equal(ours, theirs)
    assert (actual.version_spans, actual.turns) == (expected.version_spans, expected.turns)


@settings(max_examples=50)
@given(samples(), st.sampled_from([0, 10**9]))
def test_a_trajectory_comes_back_bit_for_bit_compressed_or_not(sample: Sample, compress_above_bytes: int) -> None:
    record = encode(trajectory(sample), compress_above_bytes=compress_above_bytes)
    assert (("content-encoding", b"zstd") in record.headers) == (compress_above_bytes == 0)
    decoded = decode(record.value, record.headers, Trajectory)
    assert_same_sample(decoded.samples[0], sample)
    assert msgspec.structs.replace(decoded, samples=[]) == trajectory()


@given(samples())
def test_encoding_the_decoded_message_gives_the_same_bytes(sample: Sample) -> None:
    record = encode(trajectory(sample))
    assert encode(decode(record.value, record.headers, Trajectory)) == record


def test_decoded_arrays_are_owned_aligned_and_writable() -> None:
    record = encode(trajectory(example_sample()))
    decoded = decode(record.value, record.headers, Trajectory).samples[0]
    for array in (decoded.prompt_ids, decoded.response_ids, decoded.response_mask, decoded.response_logprobs):
        assert array.flags.aligned
        assert array.flags.writeable


def example_sample() -> Sample:
    return Sample(
        prompt_ids=np.array([1, 2], dtype=np.int32),
        response_ids=np.array([3, 4, 5], dtype=np.int32),
        response_mask=np.array([1, 0, 1], dtype=np.uint8),
        response_logprobs=np.array([-0.5, 0, -1.5], dtype=np.float32),
        version_spans=[VersionSpan(0, 1, 3), VersionSpan(2, 3, 4)],
        turns=[Turn(start=0, end=1, finish_reason="stop", tool_calls=1), Turn(start=2, end=3, finish_reason="stop")],
    )


def test_arrays_of_another_byte_order_or_stride_travel_as_their_values() -> None:
    sample = example_sample()
    strided = np.array([1, 9, 2, 9], dtype=np.int32)[::2]
    record = encode(trajectory(msgspec.structs.replace(sample, prompt_ids=strided)))
    assert_same_sample(decode(record.value, record.headers, Trajectory).samples[0], sample)


text = st.text(max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | text,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(text, children, max_size=3),
    max_leaves=8,
)


@given(
    messages=st.lists(st.builds(ChatMessage, role=st.sampled_from(["system", "user"]), content=text), min_size=1),
    extra=st.dictionaries(text, json_values, max_size=3),
    member=st.integers(0, 7),
)
def test_a_task_comes_back_whole(messages: list[ChatMessage], extra: dict[str, Any], member: int) -> None:
    task = RolloutTask(
        run_id="run",
        group_id="g",
        group_index=3,
        group_size=8,
        member_index=member,
        trajectory_id="t",
        messages=messages,
        extra=extra,
    )
    record = encode(task)
    assert decode(record.value, record.headers, RolloutTask) == task


def test_unknown_fields_of_a_newer_writer_are_ignored_even_with_unknown_extensions() -> None:
    newer = msgspec.msgpack.encode({"is_paused": True, "mood": [1], "field": msgspec.msgpack.Ext(99, b"x")})
    assert decode(newer, HEADERS, Pause) == Pause(is_paused=True)


@pytest.mark.parametrize("message_type", MESSAGES)
def test_every_field_added_later_must_have_a_default(message_type: type[Message]) -> None:
    required = {field.name for field in msgspec.structs.fields(message_type) if field.required}
    assert required == REQUIRED_SINCE_VERSION_1[message_type.__name__]


REQUIRED_SINCE_VERSION_1: dict[str, set[str]] = {
    "RolloutTask": {"run_id", "group_id", "group_index", "group_size", "member_index", "trajectory_id", "messages"},
    "JournalRecord": {"kind", "trajectory_id", "attempt", "key", "writer"},
    "ToolCall": {
        "call_id", "session_id", "turn", "token", "tool", "arguments", "deadline", "timeout_s", "reply_topic",
        "reply_partition",
    },
    "SessionEnd": {"session_id"},
    "ToolResult": {"call_id", "session_id", "status", "content"},
    "Trajectory": {
        "run_id", "trajectory_id", "group_id", "group_index", "group_size", "member_index", "status", "stop_reason",
        "samples", "reward",
    },
    "PolicyVersion": {"version", "lineage", "uri", "manifest_sha256"},
    "PolicyLease": {"holder", "lineage", "version", "manifest_sha256", "until"},
    "TrainerStart": {"trainer_id"},
    "TrainerProgress": {"trainer_id", "lineage", "version", "groups_consumed", "groups_dropped", "emit_limit"},
    "ProducerProgress": {"run_id", "groups_emitted", "group_size"},
    "Pause": {"is_paused"},
    "BackfillWanted": {"run_id", "members"},
    "WorkerStatus": {"worker_id", "role", "state"},
    "DeadLetter": {
        "origin_topic", "origin_partition", "origin_offset", "key", "value", "headers", "role", "worker_id",
        "error_type", "error",
    },
    "DeadLetterResolution": {"state", "letters"},
}  # fmt: skip


def test_several_types_may_share_a_topic() -> None:
    record = encode(Pause(is_paused=True))
    assert decode(record.value, record.headers, PolicyVersion, Pause) == Pause(is_paused=True)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([], "header schema is ''"),
        ([("schema", b"Trajectory"), ("schema_version", b"1")], r"'Trajectory', expected one of \['Pause'\]"),
        ([("schema", b"\xff"), ("schema_version", b"1")], "header schema is"),
        ([("schema", None), ("schema_version", b"1")], "header schema is ''"),
        ([("schema", b"Pause")], "schema_version b''"),
        ([("schema", b"Pause"), ("schema_version", b"0")], "schema_version b'0'"),
        ([("schema", b"Pause"), ("schema_version", b"%d" % (SCHEMA_VERSION + 1))], "upgrade it"),
        ([("schema", b"Pause"), ("schema_version", b"9" * 5000)], "schema_version b'999"),
        ([("schema", b"Pause"), ("schema_version", "²".encode())], "schema_version b'"),
    ],
)
def test_a_foreign_header_is_refused_by_name(headers: Any, message: str) -> None:
    with pytest.raises(UnsupportedSchemaError, match=message):
        decode(msgspec.msgpack.encode({"is_paused": True}), headers, Pause)


def test_a_tombstone_and_an_unknown_encoding_are_refused() -> None:
    with pytest.raises(InvalidMessageError, match="tombstone"):
        decode(None, HEADERS, Pause)
    with pytest.raises(InvalidMessageError, match="content-encoding is b'br'"):
        decode(b"", [*HEADERS, ("content-encoding", b"br")], Pause)


def garbage() -> dict[str, tuple[bytes, str]]:
    array = msgspec.msgpack.Ext
    body = msgspec.msgpack.decode(encode(trajectory(example_sample())).value)

    def with_sample(**changes: Any) -> bytes:
        return msgspec.msgpack.encode({**body, "samples": [{**body["samples"][0], **changes}]})

    return {
        "not msgpack": (b"\xc1", "Trajectory: "),
        "cut off": (encode(trajectory(example_sample())).value[:-3], "truncated"),
        "nested too deep": (b"\x81\xa5extra" + b"\x81\xa1a" * 100_000 + b"\x01", "Trajectory: "),
        "list for array": (with_sample(prompt_ids=[1, 2]), "prompt_ids"),
        "floats for ids": (with_sample(prompt_ids=array(2, bytes(8))), "expected an array of int32, got float32"),
        "half a number": (with_sample(prompt_ids=array(1, bytes(7))), "array of 7 bytes"),
        "half a plane": (with_sample(prompt_ids=array(17, bytes(7))), "array of 7 bytes"),
        "no flag count": (with_sample(response_mask=array(3, b"")), "flags of 0 bytes"),
        "nine unused bits": (with_sample(response_mask=array(3, b"\x09\x01\x01")), "9 unused bits"),
        "wrong type": (msgspec.msgpack.encode({**body, "group_size": "two"}), r"\$\.group_size"),
        "broken rule": (msgspec.msgpack.encode({**body, "member_index": 2}), r"Trajectory\.member_index is 2: must"),
    }


@pytest.mark.parametrize("name", list(garbage()))
def test_garbage_is_an_invalid_message_that_names_what_is_wrong(name: str) -> None:
    value, message = garbage()[name]
    with pytest.raises(InvalidMessageError, match=message):
        decode(value, [("schema", b"Trajectory"), ("schema_version", b"1")], Trajectory)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_decode_or_are_invalid(value: bytes, is_compressed: bool) -> None:
    headers = [("schema", b"Trajectory"), ("schema_version", b"1")]
    with pytest.raises(InvalidMessageError):
        decode(value, [*headers, ("content-encoding", b"zstd")] if is_compressed else headers, Trajectory)


@settings(max_examples=200)
@given(st.data(), st.booleans())
def test_any_damage_to_a_real_record_decodes_or_is_invalid(data: st.DataObject, is_compressed: bool) -> None:
    record = encode(trajectory(example_sample()), compress_above_bytes=0 if is_compressed else 10**9)
    value = bytearray(record.value)
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(value), record.headers, Trajectory)
    except InvalidMessageError:
        return


@pytest.mark.parametrize("writes_size", [True, False])
def test_a_bomb_is_refused_before_it_unfolds(writes_size: bool) -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=writes_size)
    bomb = compressor.compress(bytes(codec.MAX_BODY_BYTES + 1))
    assert len(bomb) < 10_000
    with pytest.raises(InvalidMessageError, match=r"would have 67108865 bytes|not valid zstd"):
        decode(bomb, [*HEADERS, ("content-encoding", b"zstd")], Pause)


def test_bytes_after_the_compressed_body_are_refused() -> None:
    value = zstandard.compress(msgspec.msgpack.encode({"is_paused": True})) + b"more"
    with pytest.raises(InvalidMessageError, match="not valid zstd"):
        decode(value, [*HEADERS, ("content-encoding", b"zstd")], Pause)


def test_a_body_over_the_limit_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_BODY_BYTES", 1000)
    with pytest.raises(InvalidMessageError, match=r"Pause: the body has \d+ bytes, at most 1000"):
        encode(Pause(is_paused=True, reason="x" * 1000))
    with pytest.raises(InvalidMessageError, match="the body has 1001 bytes"):
        decode(b"x" * 1001, HEADERS, Pause)


def refused() -> dict[str, Callable[[], Message]]:
    sample = example_sample()
    replace = msgspec.structs.replace
    return {
        "int64 ids": lambda: trajectory(replace(sample, prompt_ids=np.array([1, 2]))),
        "a list": lambda: trajectory(replace(sample, prompt_ids=[1, 2])),
        "two dimensions": lambda: trajectory(replace(sample, prompt_ids=np.array([[1]], dtype=np.int32))),
        "unknown object": lambda: trajectory(sample, extra={"x": object()}),
        "half a surrogate": lambda: Pause(is_paused=True, reason="\ud800"),
        "a huge integer": lambda: trajectory(sample, extra={"x": 2**70}),
    }


@pytest.mark.parametrize("name", list(refused()))
def test_what_the_wire_cannot_carry_is_an_invalid_message(name: str) -> None:
    with pytest.raises(InvalidMessageError):
        encode(refused()[name]())


def test_the_body_can_be_read_without_the_message() -> None:
    record = encode(Pause(is_paused=True, reason="x" * 100), compress_above_bytes=0)
    assert msgspec.msgpack.decode(read_body(record.value, record.headers, Pause))["reason"] == "x" * 100
    with pytest.raises(UnsupportedSchemaError):
        read_body(record.value, record.headers, Trajectory)
