"""Records of `tasks`, each from its bytes to its acknowledged trajectory.

Invariants: a task that was emitted twice is run once; what a worker drains away from or loses is left to the next owner
of its partition, who goes on at the first effect that is not in the journal.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakValueDictionary

from msgspec import UnsetType

from rollstream.rollout_workers import metrics
from rollstream.rollout_workers.attempts import AttemptRunner
from rollstream.rollout_workers.budgets import AttemptBudgets
from rollstream.rollout_workers.effects import WorkerLeavingError, never_leaving
from rollstream.rollout_workers.handovers import Handovers
from rollstream.rollout_workers.suspects import SuspectGate
from rollstream.rollout_workers.task_in_hand import TaskInHand, journal_id
from rollstream.rollout_workers.terminal_records import TerminalRecords
from rollstream.rollout_workers.trajectory_assembly import WorkerFacts
from rollstream.schemas.codec import EncodedRecord
from rollstream.schemas.tasks import PolicyPin
from rollstream.transport.dead_letters import Cause
from rollstream.transport.journal.journal import Journal
from rollstream.transport.journal.task_state import AttemptOverError, PartitionLostError
from rollstream.transport.records import Record
from rollstream.transport.telemetry import log_context

logger = logging.getLogger(__name__)


@dataclass
class HandlingStats:
    """Counted since the worker started."""

    endings: Counter[str] = field(default_factory=Counter[str])
    dead_letters: int = 0
    sampled_tokens: int = 0
    resumed: int = 0
    """Attempts gone on with that had got somewhere before, here or elsewhere."""


class TrajectoryPublishing(Protocol):
    """Sends trajectories; a ``Publisher`` does."""

    async def publish(self, message: EncodedRecord, *, topic: str, key: str, partition: int) -> object:
        """Return when the broker has acknowledged it. Raises TransientError."""
        ...


class Burying(Protocol):
    """Keeps what cannot be processed; a ``DeadLetterOffice`` does."""

    async def bury(self, record: Record, error: Cause, *, attempts: int) -> object:
        """Return when the letter is acknowledged."""
        ...


class Policies(Protocol):
    """Gives episodes the weights they need; a ``PolicyFollower`` does."""

    def serving(self, pin: PolicyPin | UnsetType, /) -> AbstractAsyncContextManager[None]:
        """Within the block the episode may draw tokens.

        Raises DataError (the pinned policy cannot be had), WorkerLeavingError, EngineError.
        """
        ...


@dataclass(frozen=True)
class TaskHandler:
    """What all tasks of a worker share."""

    runner: AttemptRunner
    facts: WorkerFacts
    budgets: AttemptBudgets
    journal_of: Callable[[int], Journal]
    """The journal of an owned partition."""
    publisher: TrajectoryPublishing
    dead_letters: Burying
    handovers: Handovers
    terminal_records: TerminalRecords
    policies: Policies
    writer: str
    """Nonce of this process in the journal."""
    is_leaving: Callable[[], bool] = never_leaving
    clock: Callable[[], float] = time.time
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep
    """Between a failed attempt and the next; may end early when the worker is leaving."""
    gate: SuspectGate = field(default_factory=SuspectGate)
    stats: HandlingStats = field(default_factory=HandlingStats)
    _locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary[str, asyncio.Lock])

    async def handle(self, record: Record) -> bool:
        """Do everything the record needs. False: the worker is leaving, the next owner goes on.

        Raises:
            EngineDeadError: no episode of this worker can go on.
        """
        id_ = journal_id(record)
        task = TaskInHand(self, record, id_, self.journal_of(record.partition))
        lock = self._locks.setdefault(id_, asyncio.Lock())
        with log_context(trajectory_id=id_), metrics.RUNNING.track_inprogress():
            async with lock:
                while True:
                    try:
                        if await task.take_next_step():
                            return True
                    except AttemptOverError as over:
                        logger.info("goes on from what the journal says: %s", over)
                    except (PartitionLostError, WorkerLeavingError):
                        return False
