"""The fold of one journal partition, and how far back a new owner must read it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rollstream.schemas.journal import JournalRecord
from rollstream.transport.journal.task_state import TaskState

_FLOOR = re.compile(r"journal-floor=(\d+)")


class PartitionFold:
    """All tasks of one partition that its journal speaks of, read up to ``position``."""

    def __init__(self, position: int = 0) -> None:
        self._tasks: dict[str, TaskState] = {}
        self.position = position
        """Offset of the next record to read."""

    @property
    def tasks(self) -> Mapping[str, TaskState]:
        """By id."""
        return self._tasks

    def apply(self, offset: int, record: JournalRecord) -> bool:
        """Fold the record at ``offset`` in. False: it does not count.

        Raises:
            InvalidMessageError: its key or payload cannot be read; it does not count either.
        """
        self.position = max(self.position, offset + 1)
        state = self._tasks.get(record.trajectory_id)
        if state is not None:
            return state.apply(offset, record)
        if record.kind != "start":
            return False
        state = TaskState(first_offset=offset, task_offset=record.task_offset)
        is_counted = state.apply(offset, record)
        self._tasks[record.trajectory_id] = state
        return is_counted

    def skip(self, offset: int) -> None:
        """The record at ``offset`` is not one of the journal."""
        self.position = max(self.position, offset + 1)

    def floor(self, committed: int) -> int:
        """The least offset from which the journal must be read to know every task at or above ``committed`` (W10).

        Finished ones count too: their ``done`` keeps them from being run again.
        """
        return min(
            (state.first_offset for state in self._tasks.values() if state.task_offset >= committed),
            default=self.position,
        )

    def forget(self, trajectory_id: str) -> None:
        """The task is never asked for again."""
        self._tasks.pop(trajectory_id, None)

    def forget_below(self, committed: int) -> None:
        """Tasks below the committed offset are never asked for again."""
        self._tasks = {id_: state for id_, state in self._tasks.items() if state.task_offset >= committed}


def floor_text(floor: int) -> str:
    """The floor as metadata of a committed offset."""
    return f"journal-floor={floor}"


def read_floor(metadata: str) -> int | None:
    """The floor in the metadata of a committed offset; None if there is none."""
    found = _FLOOR.fullmatch(metadata)
    return int(found[1]) if found else None
