"""Records in words, for the trace of a scenario."""

from __future__ import annotations

from aiokafka import OffsetAndMetadata, TopicPartition
from simulator.cluster import Record
from simulator.processes import Process

from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.journal import JournalRecord
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.records import decode_record


def told_append(record: Record, sender: Process | None) -> str:
    """One line about a record that is now in its log."""
    return f"{record.topic}/{record.partition}/{record.offset} by {sender}: {_content(record)}"


def told_commit(group: str, place: TopicPartition, commit: OffsetAndMetadata) -> str:
    """One line about a commit."""
    return f"commit of {group}: {place.topic}/{place.partition} to {commit.offset} ({commit.metadata})"


def _content(record: Record) -> str:
    try:
        message = decode_record(record, JournalRecord, ToolCall, ToolResult, Trajectory)
    except InvalidMessageError:
        return (record.key or b"").decode(errors="replace")[:40]
    match message:
        case JournalRecord():
            return (
                f"{message.kind} of {message.trajectory_id[:6]} attempt {message.attempt} key {message.key!r} "
                f"birth {message.birth} writer {message.writer[:6]}"
            )
        case ToolCall():
            return (
                f"call {message.call_id[:6]} of {message.trajectory_id[:6]} turn {message.turn} "
                f"token {str(message.token)[:6]} {message.tool}{message.arguments} first={message.is_first}"
            )
        case ToolResult():
            return f"result of {message.call_id[:6]}: {message.status} {message.content}"
        case _:
            return f"trajectory {message.trajectory_id[:6]} {message.status} birth {message.birth}"
