"""What a journal means, told a second time and more simply than production code does: the rules J1 to J8.

Nothing is shared with `rollstream.transport.journal` but the message itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from rollstream.schemas.journal import AttemptFailure, JournalRecord


@dataclass(eq=False)
class TaskStory:
    """All that counts for one task."""

    first: int
    """Offset of its first start."""
    task_offset: int
    births: dict[int, int] = field(default_factory=dict[int, int])
    starts: set[str] = field(default_factory=set[str])
    released: set[str] = field(default_factory=set[str])
    effects: dict[tuple[int, str], tuple[int, JournalRecord]] = field(
        default_factory=dict[tuple[int, str], tuple[int, JournalRecord]]
    )
    """By (attempt, path): where, and what."""
    failures: list[AttemptFailure] = field(default_factory=list[AttemptFailure])
    """Of the attempts that are over, in order."""
    end: JournalRecord | None = None
    is_done: bool = False
    decided_at: int | None = None
    """Offset of the end."""

    @property
    def attempt(self) -> int:
        """The present one."""
        return 1 + len(self.failures)

    def meaning(self) -> object:
        """Everything that decides how the task goes on, to compare two stories."""
        held = {key: record for key, (_, record) in self.effects.items() if key[0] == self.attempt}
        failed = [failure.kind for failure in self.failures]
        return self.births, self.starts, self.released, held, failed, self.end, self.is_done


class JournalOracle:
    """The fold of one partition from some offset on."""

    def __init__(self) -> None:
        self.tasks: dict[str, TaskStory] = {}

    def tell(self, offset: int, record: JournalRecord) -> bool:
        """The next record. Whether it counts."""
        story = self.tasks.get(record.trajectory_id)
        if record.kind == "start":
            if story is None:
                story = self.tasks[record.trajectory_id] = TaskStory(offset, record.task_offset)
            if record.key in story.starts or story.end is not None or story.is_done:
                return False
            story.starts.add(record.key)
            story.births.setdefault(record.attempt, offset)
            story.task_offset = max(story.task_offset, record.task_offset)
            return True
        if story is None:
            return False
        if record.kind == "released":
            is_new = record.key not in story.released
            story.released.add(record.key)
            return is_new
        if record.birth != story.births.get(record.attempt) or story.is_done:
            return False
        if record.kind == "done":
            story.is_done = True
            return True
        if story.end is not None or record.attempt != story.attempt:
            return False
        return self._decide(story, offset, record)

    def _decide(self, story: TaskStory, offset: int, record: JournalRecord) -> bool:
        place = (record.attempt, record.key)
        if record.kind == "end":
            story.end, story.decided_at = record, offset
        elif place in story.effects:
            return False
        elif record.kind == "effect":
            story.effects[place] = (offset, record)
        else:
            story.failures.append(msgspec.msgpack.decode(record.payload, type=AttemptFailure))
        return True
