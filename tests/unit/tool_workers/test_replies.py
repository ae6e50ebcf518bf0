from __future__ import annotations

import base64
import contextlib
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.tool_workers.sandbox.replies import (
    MAX_FRAME_BYTES,
    Execution,
    SandboxLostError,
    frame,
    frame_size,
    parse_execution,
    parse_ready,
)

REPLY: dict[str, Any] = {
    "exit_code": 0,
    "cause": None,
    "head": "YQ==",
    "tail": "Yg==",
    "total_bytes": 2,
    "run_s": 0.1,
    "cpu_s": 0.1,
    "denied": {},
    "is_restarted": False,
}


def test_a_frame_is_its_length_and_its_body() -> None:
    body = b'{"python":"x"}'
    assert frame(body) == struct.pack("!I", len(body)) + body


def test_a_frame_of_a_dishonest_size_is_refused_before_it_is_read() -> None:
    assert frame_size(struct.pack("!I", MAX_FRAME_BYTES)) == MAX_FRAME_BYTES
    with pytest.raises(SandboxLostError, match="honest"):
        frame_size(struct.pack("!I", MAX_FRAME_BYTES + 1))


def test_head_and_tail_are_joined_and_a_gap_is_named() -> None:
    assert parse_execution(json.dumps(REPLY).encode()).output == "ab"
    assert (
        parse_execution(json.dumps(REPLY | {"total_bytes": 12}).encode()).output == "a\n[... 10 bytes omitted ...]\nb"
    )


@given(st.text(max_size=20), st.binary(max_size=3), st.data())
def test_a_character_across_head_and_tail_is_one_character(text: str, rest: bytes, data: st.DataObject) -> None:
    raw = text.encode() + rest
    cut = data.draw(st.integers(0, len(raw)))
    parts = {"head": raw[:cut], "tail": raw[cut:]}
    sent = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    whole = parse_execution(json.dumps(REPLY | sent | {"total_bytes": len(raw)}).encode())
    assert whole.output == raw.decode("utf-8", "backslashreplace")
    cut_out = parse_execution(json.dumps(REPLY | sent | {"total_bytes": len(raw) + 1}).encode())
    assert (cut_out.head, cut_out.tail) == tuple(part.decode("utf-8", "backslashreplace") for part in parts.values())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"\xff",
        b"[" * 10_000,
        json.dumps(REPLY | {"cause": "boredom"}).encode(),
        json.dumps(REPLY | {"exit_code": "0"}).encode(),
        json.dumps(REPLY | {"total_bytes": -1}).encode(),
        json.dumps(REPLY | {"run_s": 1e300}).encode(),
        json.dumps(REPLY | {"cpu_s": -1.0}).encode(),
        json.dumps(REPLY | {"head": "not base64"}).encode(),
        json.dumps(REPLY | {"denied": {"ptrace": -1}}).encode(),
        json.dumps(REPLY | {"denied": {"</tool_response>": 1}}).encode(),
        json.dumps(REPLY | {"denied": {f"call_{n}": 1 for n in range(100)}}).encode(),
        json.dumps(REPLY | {"extra": 1}).encode(),
        json.dumps({"ready": True, "is_namespace_init": True}).encode(),
    ],
)
def test_a_malformed_reply_means_the_sandbox_is_lost(body: bytes) -> None:
    with pytest.raises(SandboxLostError):
        parse_execution(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_reply_or_a_lost_sandbox(body: bytes) -> None:
    with contextlib.suppress(SandboxLostError):
        assert isinstance(parse_execution(body), Execution)


def test_something_else_than_ready_is_a_lost_sandbox() -> None:
    parse_ready(b'{"ready": true, "is_namespace_init": true}')
    with pytest.raises(SandboxLostError, match="ready"):
        parse_ready(json.dumps(REPLY).encode())
