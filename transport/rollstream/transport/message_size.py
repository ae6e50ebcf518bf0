"""How large a message is, before it is encoded: decides whether a thread does the work. Pure."""

from __future__ import annotations

from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.journal import JournalRecord
from rollstream.schemas.messages import Message
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.schemas.trajectories import Trajectory


def large_parts_bytes(message: Message) -> int:
    """Bytes of what can be large in a message: arrays, payloads, long texts. Costs nothing next to encoding."""
    match message:
        case Trajectory(samples=samples):
            return sum(sample.prompt_ids.nbytes + 3 * sample.response_ids.nbytes for sample in samples)
        case RolloutTask(messages=messages):
            return sum(len(each.content) for each in messages)
        case ToolCall(arguments=text) | ToolResult(content=text):
            return len(text)
        case JournalRecord(payload=payload):
            return len(payload)
        case DeadLetter(value=value):
            return len(value or b"")
        case _:
            return 0
