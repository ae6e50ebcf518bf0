"""All messages that travel, by topic."""

from __future__ import annotations

from typing import Final

from rollstream.schemas.control import (
    BackfillWanted,
    Pause,
    PolicyLease,
    PolicyVersion,
    ProducerProgress,
    TrainerProgress,
    TrainerStart,
    WorkerStatus,
)
from rollstream.schemas.dead_letters import DeadLetter, DeadLetterResolution
from rollstream.schemas.journal import JournalRecord
from rollstream.schemas.messages import Message
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.tools import SessionEnd, ToolCall, ToolResult
from rollstream.schemas.trajectories import Trajectory

MESSAGES: Final[tuple[type[Message], ...]] = (
    RolloutTask,
    JournalRecord,
    ToolCall,
    SessionEnd,
    ToolResult,
    Trajectory,
    PolicyVersion,
    PolicyLease,
    TrainerStart,
    TrainerProgress,
    ProducerProgress,
    Pause,
    BackfillWanted,
    WorkerStatus,
    DeadLetter,
    DeadLetterResolution,
)
