"""How large a message is, before it is encoded."""

from __future__ import annotations

import numpy as np
import pytest

from rollstream.schemas.codec import encode
from rollstream.schemas.control import Pause
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.journal import JournalRecord
from rollstream.schemas.messages import Message
from rollstream.schemas.tasks import ChatMessage, RolloutTask
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.schemas.trajectories import Sample, Trajectory, VersionSpan
from rollstream.transport.message_size import large_parts_bytes

SIZE = 30_000
ID = "0" * 32


def trajectory(tokens: int) -> Trajectory:
    sample = Sample(
        prompt_ids=np.arange(1, dtype=np.int32),
        response_ids=np.arange(tokens, dtype=np.int32),
        response_mask=np.ones(tokens, dtype=np.uint8),
        response_logprobs=np.full(tokens, -1.0, dtype=np.float32),
        version_spans=[VersionSpan(0, tokens, 0)],
        turns=[],
    )
    return Trajectory(
        run_id="r", trajectory_id=ID, group_id=ID, group_index=0, group_size=1, member_index=0,
        status="completed", stop_reason="stop", samples=[sample], reward=None,
    )  # fmt: skip


MESSAGES: list[Message] = [
    trajectory(SIZE // 8),
    RolloutTask(
        run_id="r", group_id=ID, group_index=0, group_size=1, member_index=0, trajectory_id=ID,
        messages=[ChatMessage(role="user", content="x" * SIZE)],
    ),
    ToolCall(
        call_id=ID, session_id=None, turn=0, token=None, tool="t", arguments="x" * SIZE, deadline=0, timeout_s=1,
        reply_topic="r", reply_partition=0,
    ),
    ToolResult(call_id=ID, session_id=None, status="ok", content="x" * SIZE),
    JournalRecord(kind="effect", trajectory_id=ID, attempt=1, key="0", writer="w", birth=0, payload=b"x" * SIZE),
    DeadLetter(
        origin_topic="t", origin_partition=0, origin_offset=0, key=None, value=b"x" * SIZE, headers=[], role="r",
        worker_id="w", error_type="E", error="e",
    ),
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_the_estimate_is_near_what_is_encoded(message: Message) -> None:
    encoded_bytes = len(encode(message, compress_above_bytes=10 * SIZE).value)
    assert encoded_bytes / 2 < large_parts_bytes(message) < 2 * encoded_bytes


def test_what_cannot_be_large_counts_nothing() -> None:
    assert large_parts_bytes(Pause(is_paused=True)) == 0
