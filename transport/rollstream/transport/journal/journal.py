"""What rollout workers ask of a journal, and one in memory for those who go without."""

from __future__ import annotations

import uuid
from collections import defaultdict, deque
from typing import Protocol

from rollstream.schemas.journal import JournalRecord
from rollstream.transport.journal.partition_fold import PartitionFold
from rollstream.transport.journal.task_state import AttemptOverError, TaskState

REMEMBERED_TASKS = 1024


class Journal(Protocol):
    """The journal of one partition of `tasks`."""

    def state(self, trajectory_id: str) -> TaskState | None:
        """What counts for a task so far; None: nothing."""
        ...

    def is_current(self) -> bool:
        """Whether the state is worth acting on: it was read a moment ago."""
        ...

    async def until_current(self) -> None:
        """Return when it is: after this process was frozen, when what others have written meanwhile has been read."""
        ...

    async def append(self, record: JournalRecord) -> TaskState:
        """Return when a record with this key counts: this one, or an equal-keyed one that came before it.

        The state then holds it; ``effects[key]`` and ``end`` may be another writer's. Safe to repeat.

        Raises:
            AttemptOverError: none will ever count; begin again from the state.
            InvalidMessageError: the record is too large for the topic.
        """
        ...


class MemoryJournal:
    """A journal that lives and dies with its process: after it, episodes begin again from their prompts.

    The last ``REMEMBERED_TASKS`` finished tasks are remembered.
    """

    def __init__(self) -> None:
        self._fold = PartitionFold(uuid.uuid4().int >> 66)
        """Offsets begin anywhere, so that the births of two processes differ."""
        self._finished: deque[str] = deque()

    def state(self, trajectory_id: str) -> TaskState | None:
        """See ``Journal``."""
        return self._fold.tasks.get(trajectory_id)

    def is_current(self) -> bool:
        """See ``Journal``."""
        return True

    async def until_current(self) -> None:
        """See ``Journal``."""

    async def append(self, record: JournalRecord) -> TaskState:
        """See ``Journal``."""
        while (state := held(self.state(record.trajectory_id), record)) is None:
            self._fold.apply(self._fold.position, record)
        if record.kind == "done":
            self._finished.append(record.trajectory_id)
            if len(self._finished) > REMEMBERED_TASKS:
                self._fold.forget(self._finished.popleft())
        return state


class MemoryJournals:
    """One `MemoryJournal` per partition."""

    def __init__(self) -> None:
        self._journals: defaultdict[int, MemoryJournal] = defaultdict(MemoryJournal)

    def of(self, partition: int) -> MemoryJournal:
        """The journal of a partition."""
        return self._journals[partition]


def held(state: TaskState | None, record: JournalRecord) -> TaskState | None:
    """The state if a record with this key counts in it; None if this one would.

    Raises:
        AttemptOverError: neither, and that will not change.
    """
    if state is not None and state.holds(record):
        return state
    if state is None:
        reason = None if record.kind == "start" else "nothing is known of its task"
    else:
        reason = state.refusal(record)
    if reason is not None:
        raise AttemptOverError(
            f"{record.kind} {record.key!r} of trajectory {record.trajectory_id!r}, attempt {record.attempt}: {reason}"
        )
    return None
