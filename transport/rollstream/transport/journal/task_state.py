"""What the journal says about one task. Pure; knows no Kafka and no clock.

The rules J1 to J8: records are folded in the order of their offsets, the first one with a key counts, whoever wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from rollstream.schemas.errors import InvalidMessageError, RollstreamError
from rollstream.schemas.journal import AttemptFailure, JournalRecord, StartFacts, TerminalRecord


class AttemptOverError(RollstreamError):
    """Somebody else's record has decided otherwise: this attempt is over. Begin again from the journal."""


class PartitionLostError(RollstreamError):
    """The partition has left this worker: what runs for it here goes no further, the next owner goes on."""


@dataclass(frozen=True, slots=True, order=True)
class StartKey:
    """Which start of a task: of which attempt, the how many-th of the task, by which process."""

    attempt: int
    n: int
    writer: str

    def __str__(self) -> str:
        return f"{self.attempt}/{self.n}/{self.writer}"

    @classmethod
    def parse(cls, text: str) -> StartKey:
        """Raises InvalidMessageError."""
        attempt, n, writer = [*text.split("/", 2), "", ""][:3]
        if not (attempt.isdecimal() and n.isdecimal() and writer):
            raise InvalidMessageError(f"key {text[:200]!r} of a start is not attempt/n/writer", field="key")
        return cls(int(attempt), int(n), writer)


T = TypeVar("T")


@dataclass(slots=True)
class TaskState:
    """The fold of a task's records. Only its present attempt keeps its effects; after the end only that is kept."""

    first_offset: int
    """Of the task's first record in the journal."""
    task_offset: int
    """Of the task itself."""
    attempt: int = 1
    """The present one; all before it are over."""
    births: dict[int, int] = field(default_factory=dict[int, int])
    """Offset of the first start of each attempt."""
    started_at: float = 0.0
    """Unix seconds of the task's first start."""
    starts: set[StartKey] = field(default_factory=set[StartKey])
    released: set[StartKey] = field(default_factory=set[StartKey])
    progress: int = 0
    """The highest n of a start when the last effect or end of an attempt was recorded."""
    effects: dict[str, JournalRecord] = field(default_factory=dict[str, JournalRecord])
    """Of the present attempt, by path."""
    infra: int = 0
    data: int = 0
    failure: AttemptFailure | None = None
    """Why the last attempt ended."""
    end: TerminalRecord | None = None
    is_done: bool = False

    @property
    def last_start(self) -> int:
        """The highest n of any start; 0 before the first."""
        return max((start.n for start in self.starts), default=0)

    @property
    def unclean(self) -> int:
        """Starts since the last progress whose workers neither released them nor lived to get anywhere (J8).

        Two workers that began at once, each believing that it owns the task, count as one.
        """
        return len({start.n for start in self.starts - self.released if start.n > self.progress})

    @property
    def has_ended(self) -> bool:
        """Whether it is decided how the task ends."""
        return self.end is not None or self.is_done

    @property
    def birth(self) -> int | None:
        """Birth of the present attempt; None before its first start."""
        return self.births.get(self.attempt)

    def holds(self, record: JournalRecord) -> bool:
        """Whether a record with this key counts already, so that this one would not."""
        match record.kind:
            case "start":
                return StartKey.parse(record.key) in self.starts
            case "released":
                return StartKey.parse(record.key) in self.released
            case "effect":
                return record.attempt == self.attempt and record.key in self.effects
            case "attempt_end":
                return record.attempt < self.attempt
            case "end":
                return self.has_ended
            case "done":
                return self.is_done

    def refusal(self, record: JournalRecord) -> str | None:
        """Why a record that is not held would be void; None if it would count."""
        if record.kind in ("start", "released"):
            return "the task has ended" if self.has_ended else None
        if record.birth != self.births.get(record.attempt):
            return f"attempt {record.attempt} was born at {self.births.get(record.attempt)}, not at {record.birth}"
        if record.kind == "done":
            return None
        if self.has_ended:
            return "the task has ended"
        if record.attempt != self.attempt:
            return f"attempt {record.attempt} is over, {self.attempt} is the present one"
        if record.kind == "attempt_end" and record.key in self.effects:
            return f"effect {record.key!r} has succeeded"
        return None

    def apply(self, offset: int, record: JournalRecord) -> bool:
        """Fold one record in. False: it does not count.

        Raises:
            InvalidMessageError: its key or payload cannot be read; nothing has changed.
        """
        if self.holds(record) or self.refusal(record) is not None:
            return False
        match record.kind:
            case "start":
                self._start(offset, record)
            case "released":
                self.released.add(StartKey.parse(record.key))
            case "effect":
                self.effects[record.key] = record
                self.progress = self.last_start
            case "attempt_end":
                self._fail(_payload(record, AttemptFailure))
            case "end":
                self.end = _payload(record, TerminalRecord)
                self.effects.clear()
            case "done":
                self.is_done = True
                self.end = None
                self.effects.clear()
        return True

    def _start(self, offset: int, record: JournalRecord) -> None:
        key, facts = StartKey.parse(record.key), _payload(record, StartFacts)
        if not self.starts:
            self.started_at = facts.started_at
        self.starts.add(key)
        self.births.setdefault(record.attempt, offset)
        self.task_offset = max(self.task_offset, record.task_offset)

    def _fail(self, failure: AttemptFailure) -> None:
        self.failure = failure
        if failure.kind == "infrastructure":
            self.infra += 1
        else:
            self.data += 1
        self.attempt += 1
        self.effects.clear()
        self.progress = self.last_start


def _payload(record: JournalRecord, payload_type: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(record.payload, type=payload_type)
    except msgspec.MsgspecError as error:
        raise InvalidMessageError(f"the payload of {record.kind!r} is none: {error}", field="payload") from error
